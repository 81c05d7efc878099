"""The planner as a pure function, and fastconv.explain."""

import pytest
import torch

import fastconv
from fastconv import _C

# One problem per row of the table: (input, weight, keywords).
ROWS = {
    "conv1x1": ((2, 8, 5, 6), (4, 8, 1, 1), {}),
    "depthwise": ((1, 8, 5, 6), (8, 1, 3, 3), {"groups": 8}),
    "grouped": ((1, 8, 5, 6), (8, 4, 3, 3), {"groups": 2}),
    "winograd": ((1, 12, 5, 6), (16, 12, 3, 3), {"padding": 1}),
    "direct": ((1, 8, 5, 6), (3, 8, 3, 3), {"padding": 1}),
}


CUDA_ROWS = {
    "conv1x1": ((2, 8, 5, 6), (16, 8, 1, 1), {"stride": 2}, torch.float16),
    "stem": ((1, 3, 15, 16), (8, 3, 7, 7), {"stride": 2, "padding": 3}, torch.bfloat16),
    "depthwise": ((1, 8, 5, 6), (8, 1, 3, 3), {"groups": 8}, torch.float32),
    "implicit_gemm": ((1, 8, 5, 6), (16, 8, 3, 3), {"padding": 1}, torch.float32),
    "direct": ((1, 8, 5, 6), (4, 8, 3, 3), {"padding": 1}, torch.float64),
}


def test_every_row_of_cuda_has_a_problem_that_takes_it():
    assert list(CUDA_ROWS) == _C.algorithms(1)
    for name, (x, w, keywords, dtype) in CUDA_ROWS.items():
        answer = fastconv.explain(x, w, backend="cuda", dtype=dtype, **keywords)
        assert answer.algorithm == name
        gradients = [
            fastconv.explain(x, w, backend="cuda", dtype=dtype, direction=d, **keywords).algorithm
            for d in ("input_grad", "weight_grad")
        ]
        # A strided 1x1 goes by phase; few input channels are summed by the direct kernel.
        others = {"conv1x1": ["implicit_gemm"] * 2, "stem": ["direct", "stem"]}
        assert gradients == others.get(name, [name] * 2)
    one = (2, 8, 5, 6), (16, 8, 1, 1)
    for d in ("input_grad", "weight_grad"):
        assert (
            fastconv.explain(*one, backend="cuda", dtype=torch.half, direction=d).algorithm
            == "conv1x1"
        )


@pytest.mark.parametrize("direction", ["forward", "weight_grad"])
@pytest.mark.parametrize(
    "refused, x, w, groups",
    [
        ("stem", (1, 1, 5, 6), (64 * 65535 + 8, 1, 3, 2), 1),
        ("depthwise", (1, 32 * 65535 + 8, 5, 6), (32 * 65535 + 8, 1, 3, 2), 32 * 65535 + 8),
        ("depthwise", (1, 8 * 65535 + 1, 55, 55), (8 * 65535 + 1, 1, 55, 55), 8 * 65535 + 1),
        ("implicit_gemm", (1, 65536 * 8, 5, 6), (65536 * 8, 8, 3, 2), 65536),
    ],
)
def test_what_no_grid_can_hold_is_direct(refused, x, w, groups, direction):
    """One channel or group fewer is taken; of both forms of the depthwise kernel's blocks."""
    dtype = {"backend": "cuda", "dtype": torch.float16, "direction": direction}
    answer = fastconv.explain(x, w, groups=groups, **dtype)
    assert answer.algorithm == "direct"
    assert "than a grid has rows" in {c.algorithm: c.refusal for c in answer.candidates}[refused]
    less = 8 if refused != "depthwise" else groups % 65535
    x = x if groups == 1 else (x[0], x[1] - less, *x[2:])
    w, groups = (w[0] - less, *w[1:]), groups if groups == 1 else groups - less // w[1]
    assert fastconv.explain(x, w, groups=groups, **dtype).algorithm == refused


@pytest.mark.parametrize(
    "x, w, keywords, refused, direction",
    [
        ((18, 16, 10**8, 1), (16, 1, 3, 1), {"groups": 16}, "depthwise", "forward"),
        (
            (18, 16, 10**8, 1),
            (16, 1, 2, 1),
            {"groups": 16, "stride": (2, 1)},
            "depthwise",
            "input_grad",
        ),
        ((1, 8, 46340, 46340), (8, 8, 3, 3), {"padding": 1}, "implicit_gemm", "weight_grad"),
    ],
)
def test_what_steps_past_32_bits_is_refused(x, w, keywords, refused, direction):
    """A depthwise block's next output, a weight gradient's pixel behind the last image; half the
    size, or no padding, is taken."""
    options = dict(backend="cuda", dtype=torch.float16, direction=direction)
    answer = fastconv.explain(x, w, **keywords, **options)
    assert "sizes beyond 32 bits" == {c.algorithm: c.refusal for c in answer.candidates}[refused]
    x = (x[0] // 2, *x[1:]) if refused == "depthwise" else x
    keywords = keywords | {"padding": 0}
    assert fastconv.explain(x, w, **keywords, **options).algorithm == refused


STEM = (1, 3, 90, 90), (32, 3, 7, 7)


@pytest.mark.parametrize(
    "x, w, keywords, refused, reason",
    [
        ((1, 8, 9, 9), (8, 8, 5, 5), {"stride": 5}, "implicit_gemm", "more than 16 stride phases"),
        ((1, 8, 9, 9), (8, 1, 5, 5), {"stride": 5, "groups": 8}, "depthwise", "more than 16"),
        ((1, 8, 9, 9), (16, 8, 1, 1), {"stride": 2}, "conv1x1", "leave pixels out"),
        ((1, 3, 9, 9), (16, 3, 3, 3), {}, "stem", "it has no input gradient"),
    ],
)
def test_each_reason_of_cudas_gradients(x, w, keywords, refused, reason):
    options = dict(backend="cuda", dtype=torch.float16, direction="input_grad")
    answer = fastconv.explain(x, w, **keywords, **options)
    assert reason in {c.algorithm: c.refusal for c in answer.candidates}[refused]


TRITON_ROWS = {
    "conv1x1": ((2, 8, 5, 6), (16, 8, 1, 1), {"stride": 2}, torch.float16),
    "stem": ((1, 3, 15, 16), (8, 3, 7, 7), {"stride": 2, "padding": 3}, torch.bfloat16),
    "depthwise": ((1, 8, 5, 6), (8, 1, 3, 3), {"groups": 8}, torch.float64),
    "implicit_gemm": ((1, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}, torch.float64),
}


def test_every_row_of_triton_has_a_problem_that_takes_it():
    assert list(TRITON_ROWS) == fastconv.build_info()["algorithms (Triton)"].split()
    for name, (x, w, keywords, dtype) in TRITON_ROWS.items():
        for direction in ("forward", "weight_grad"):
            answer = fastconv.explain(
                x, w, backend="triton", dtype=dtype, direction=direction, **keywords
            )
            assert answer.algorithm == name, str(answer)


@pytest.mark.parametrize(
    "x, w, keywords, refused, reason",
    [
        ((1, 4, 5, 6), (4, 4, 1, 1), {"stride": 2, "direction": "input_grad"}, "conv1x1", "phase"),
        ((1, 4, 5, 6), (4, 4, 1, 1), {"padding": 1}, "conv1x1", "outside"),
        ((1, 16, 5, 6), (4, 8, 3, 3), {"groups": 2}, "depthwise", "GEMM"),
        ((1, 16, 5, 6), (4, 16, 3, 3), {}, "depthwise", "single group"),
        ((1, 5, 5, 6), (4, 5, 3, 3), {}, "stem", "more than 4"),
        ((1, 4, 5, 6), (4, 4, 3, 3), {"dilation": 2}, "stem", "contiguous"),
        ((1, 4, 5, 6), (4, 4, 3, 3), {"direction": "input_grad"}, "stem", "output channels"),
        ((1, 4, 5, 6), (4, 4, 3, 3), {"dtype": torch.float64}, "stem", "copied"),
        ((1, 4, 5, 60), (4, 4, 3, 33), {}, "stem", "longer"),
        ((1, 4, 5, 6), (4, 2, 3, 3), {"groups": 2}, "stem", "groups"),
    ],
)
def test_each_reason_of_triton(x, w, keywords, refused, reason):
    answer = fastconv.explain(x, w, backend="triton", **keywords)
    assert reason in {c.algorithm: c.refusal for c in answer.candidates}[refused]


def test_odd_channels_are_direct_on_cuda_and_it_says_why():
    answer = fastconv.explain((1, 5, 7, 6), (9, 5, 3, 3), backend="cuda", dtype=torch.float16)
    assert answer.algorithm == "direct"
    refusals = {c.algorithm: c.refusal for c in answer.candidates}
    assert "16-byte chunks" in refusals["implicit_gemm"] and "4 input" in refusals["stem"]


def test_every_row_has_a_problem_that_takes_it():
    assert set(ROWS) == set(_C.algorithms(0))
    for name, (x, w, keywords) in ROWS.items():
        for direction in ("forward", "input_grad", "weight_grad"):
            assert fastconv.explain(x, w, direction=direction, **keywords).algorithm == name


def test_refusals_are_words():
    answer = fastconv.explain((1, 8, 5, 6), (4, 8, 3, 3))
    refusals = {c.algorithm: c.refusal for c in answer.candidates}
    assert refusals["conv1x1"] == "the kernel is larger than 1x1"
    assert refusals["direct"] is None
    assert "->" in str(answer) and "larger than 1x1" in str(answer)


@pytest.mark.parametrize(
    "x, w, keywords, refused, reason",
    [
        ((1, 4, 5, 6), (4, 4, 1, 1), {"padding": 1}, "conv1x1", "outside"),
        ((1, 4, 5, 6), (4, 2, 1, 1), {"groups": 2}, "conv1x1", "groups"),
        ((1, 4, 5, 6), (4, 4, 1, 1), {"stride": 2, "direction": "input_grad"}, "conv1x1", "phase"),
        ((1, 4, 5, 6), (4, 2, 3, 3), {"groups": 2}, "depthwise", "more than one"),
        ((1, 1, 5, 6), (4, 1, 3, 3), {}, "depthwise", "single group"),
        ((1, 64, 5, 6), (64, 64, 3, 3), {"stride": 3}, "winograd", "stride"),
        ((1, 64, 9, 9), (64, 64, 5, 5), {"stride": 2}, "winograd", "few channels"),
        ((1, 23, 9, 9), (64, 23, 3, 3), {"stride": 2}, "winograd", "too few channels"),
        (
            (1, 64, 9, 9),
            (64, 64, 3, 3),
            {"stride": 2, "direction": "input_grad"},
            "winograd",
            "padding 1 only",
        ),
        (
            (16, 64, 9, 9),
            (64, 64, 3, 3),
            {"stride": 2, "padding": 1, "direction": "input_grad"},
            "winograd",
            "too few products",
        ),
        ((1, 64, 5, 6), (64, 64, 3, 5), {"padding": 2}, "winograd", "neither 3x3 nor 5x5"),
        ((1, 3, 5, 6), (64, 3, 3, 3), {"padding": 1}, "winograd", "too few channels"),
        ((1, 64, 5, 6), (64, 64, 3, 3), {"padding": 3}, "winograd", "padding only"),
        ((3, 64, 1, 9), (64, 64, 3, 3), {"padding": 1}, "winograd", "so small a map"),
        ((1, 64, 5, 6), (64, 64, 5, 5), {}, "winograd", "so small a map"),
        ((1, 64, 3, 5), (64, 64, 3, 3), {"padding": 1}, "winograd", "too few pixels"),
        (
            (1, 64, 14, 14),
            (64, 64, 5, 5),
            {"padding": 2, "direction": "weight_grad"},
            "winograd",
            "coarse",
        ),
        ((1, 4, 5, 6), (8, 1, 3, 3), {"groups": 4, "direction": "input_grad"}, "depthwise", "sum"),
        (*STEM, {"stride": 2, "dilation": 2}, "winograd", "dilated and strided"),
        (*STEM, {"stride": 2, "direction": "input_grad"}, "winograd", "no input gradient"),
        (*STEM, {"stride": 2, "padding": 7}, "winograd", "padding only"),
        ((1, 3, 20, 28), STEM[1], {"stride": 2}, "winograd", "so small a map"),
        (STEM[0], (23, 3, 7, 7), {"stride": 2}, "winograd", "too few channels"),
    ],
)
def test_each_reason(x, w, keywords, refused, reason):
    refusals = {c.algorithm: c.refusal for c in fastconv.explain(x, w, **keywords).candidates}
    assert reason in refusals[refused]


def test_narrow_vectors_pay_for_fewer_channels(isa):
    def algorithm(channels):
        sizes = (1, channels, 15, 14), (64, channels, 3, 3)
        return fastconv.explain(*sizes, padding=1).algorithm

    fewest = {"baseline": 4, "avx2": 8}.get(isa, 12)
    assert [algorithm(fewest - 1), algorithm(fewest)] == ["direct", "winograd"]


def test_a_sum_over_a_batch_is_long_enough_for_a_5x5_weight_gradient():
    def algorithm(n):
        keywords = {"padding": 2, "direction": "weight_grad"}
        return fastconv.explain((n, 64, 14, 14), (64, 64, 5, 5), **keywords).algorithm

    assert [algorithm(n) for n in (2, 3)] == ["direct", "winograd"]


def test_explain_wants_a_known_direction_and_sizes_that_fit():
    with pytest.raises(ValueError, match="direction"):
        fastconv.explain((1, 4, 5, 6), (4, 4, 1, 1), direction="sideways")
    with pytest.raises(RuntimeError, match="per group"):
        fastconv.explain((1, 4, 5, 6), (4, 3, 1, 1))


def test_backend_is_checked():
    with fastconv.backend("cpu"):
        pass
    with pytest.raises(ValueError, match="tpu"), fastconv.backend("tpu"):
        pass


def test_isa_by_name():
    with pytest.raises(RuntimeError, match="choose one of"):
        _C.set_cpu_isa("sse9")
    _C.set_cpu_isa("baseline")
    assert _C.cpu_isa() == "baseline"
    _C.set_cpu_isa("")
