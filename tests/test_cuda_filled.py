"""Channels that are no whole 16-byte chunks on tensor cores: zeros fill them up, in copies."""

import pytest
import torch
import torch.nn.functional as F
from conv_cases import LAYOUTS, gradients, make, values
from emulator.ops import emulated_cuda

import fastconv
from fastconv.explain import explain
from fastconv.testing.compare import assert_good

# N, C, H, W, K, R, S, stride, padding, dilation, groups; zeros in C, in K, in both.
CASES = {
    "in": (2, 11, 9, 7, 24, 3, 2, (1, 1), (1, 0), (1, 1), 1),
    "out": (1, 16, 9, 7, 13, 3, 3, (2, 1), (1, 1), (1, 1), 1),
    "both": (1, 10, 8, 7, 19, 2, 3, (1, 1), (1, 1), (2, 1), 1),
    "1x1": (2, 11, 6, 7, 19, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "1x1 strided": (2, 11, 6, 7, 19, 1, 1, (2, 2), (0, 0), (1, 1), 1),
    "splits": (1, 75, 4, 3, 70, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "stem": (1, 3, 14, 15, 24, 5, 5, (2, 2), (2, 2), (1, 1), 1),
}
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


@pytest.mark.parametrize("math", DTYPES)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("without_tf32")
def test_forward_and_gradients(case, layout, math):
    """Fused, in every layout; beside float64, and by the kernels that are meant."""
    dtype = DTYPES[math]
    x, w, b, window = make(CASES[case], dtype, layout)
    size = F.conv2d(x, w, b, *window).shape
    dy, r = (values(size, torch.Generator().manual_seed(seed), dtype) for seed in (1, 2))

    def fused(x, w, b, *window):
        return (F.conv2d(x, w, b, *window) + r.to(x.dtype)).relu()

    with emulated_cuda(least_filled=1) as log:
        y = fastconv.conv2d(x, w, b, *window, residual=LAYOUTS[layout](r), activation="relu")
        ours = gradients(fastconv.conv2d, x, w, b, window, LAYOUTS[layout](dy))
    double = [t.double() for t in (x, w, b)]
    assert_good(y, fused(x, w, b, *window), fused(*double, *window), dtype)
    theirs = gradients(F.conv2d, x, w, b, window, dy)
    exact = gradients(F.conv2d, *double, window, dy.double())
    for mine, reference, true in zip(ours, theirs, exact, strict=True):
        assert_good(mine, reference, true, dtype)
    names = " ".join(log)
    gemm = "conv1x1" if case == "1x1" else "conv_implicit_gemm"
    forward = {"stem": "conv_stem", "1x1 strided": "conv1x1"}.get(case, gemm)
    weights = "conv_stem" if case == "stem" else gemm
    for name in (forward, f"{gemm}_input_grad", f"{weights}_weight_grad"):
        assert f"{name}_{math}" in names, log
    assert "conv_direct" not in names, log


def test_what_lies_beyond_the_channels_is_no_number():
    """Neither an infinity nor a NaN of a neighbour gets in where zeros are meant."""
    x, w, b, window = make(CASES["both"], torch.float16, "channels_last")
    around = torch.full((1, x.shape[1] + 6, *x.shape[2:]), torch.nan).half()
    around = around.contiguous(memory_format=torch.channels_last)
    around[:, 3:-3] = x
    with emulated_cuda(least_filled=1):
        assert torch.equal(
            fastconv.conv2d(around[:, 3:-3], w, b, *window), fastconv.conv2d(x, w, b, *window)
        )


@pytest.mark.parametrize(
    "sizes, direction, expected",
    [
        (((8, 100, 56, 56), (100, 100, 3, 3)), "forward", "implicit_gemm"),
        (((8, 100, 56, 56), (100, 100, 3, 3)), "weight_grad", "implicit_gemm"),
        (((1, 100, 9, 7), (100, 100, 3, 3)), "forward", "direct"),  # few products
        (((64, 1, 512, 512), (1, 1, 11, 11)), "input_grad", "direct"),  # 64 times as many
        (((32, 3, 224, 224), (64, 3, 3, 3)), "input_grad", "implicit_gemm"),
        (((32, 100, 56, 56), (100, 50, 3, 3)), "forward", "direct"),  # groups
    ],
)
def test_which_problems_are_filled(sizes, direction, expected):
    groups = sizes[0][1] // sizes[1][1]
    found = explain(
        *sizes, padding=1, groups=groups, backend="cuda", direction=direction, dtype=torch.half
    )
    assert found.algorithm == expected
