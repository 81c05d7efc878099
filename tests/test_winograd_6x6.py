"""fastconv.winograd_6x6: only where asked for, only where it pays, as exact as it says."""

import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from conv_cases import LAYOUTS

import fastconv
from fastconv.testing.compare import assert_good, relative_rms

# (N, C, H, W, K, dilation, groups): maps of full and brief tiles, of one short tile at the end,
# several blocks, channels that no vector fills.
PROBLEMS = [
    (5, 19, 24, 26, 37, 1, 1),
    (5, 33, 22, 31, 16, 1, 1),
    (1, 16, 60, 55, 50, 1, 1),
    (6, 300, 23, 24, 20, 1, 1),
    (2, 16, 48, 46, 18, 2, 1),
    (1, 26, 60, 56, 24, 1, 2),
]
FACTOR = 32.0  # of torch's own error, where tiles of 4 x 4 have 8


def gradients(conv2d, x, w, dy, dilation, groups):
    a, b = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = conv2d(a, b, None, 1, dilation, dilation, groups)
    return y, *torch.autograd.grad(y, (a, b), dy)


def operands(problem, layout="nchw", dtype=torch.float32):
    n, c, h, w, k, dilation, groups = problem
    tensors = torch.randn(n, c, h, w), torch.randn(k, c // groups, 3, 3), torch.randn(n, k, h, w)
    x, weight, dy = (t.to(dtype) for t in tensors)
    return LAYOUTS[layout](x), weight, LAYOUTS[layout](dy), dilation, groups


def plain(seed=0, size=(6, 16, 24, 25)):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=g), torch.randn(20, size[1], 3, 3, generator=g)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_direction_is_right(problem, layout, isa):
    x, w, dy, *more = operands(problem, layout)
    with fastconv.winograd_6x6():
        ours = gradients(fastconv.conv2d, x, w, dy, *more)
    others = gradients(fastconv.conv2d, x, w, dy, *more)
    theirs = gradients(F.conv2d, x, w, dy, *more)
    truth = gradients(F.conv2d, *(t.double() for t in (x, w, dy)), *more)
    for result, other, torchs, exact in zip(ours, others, theirs, truth, strict=True):
        assert_good(result, torchs, exact, torch.float32, FACTOR)
        assert not torch.equal(result, other)  # it ran
        assert relative_rms(result, exact) < 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_as_right_as_ever(dtype, isa):
    x, w, dy, *more = operands(PROBLEMS[0], "channels_last", dtype)
    with fastconv.winograd_6x6():
        ours = gradients(fastconv.conv2d, x, w, dy, *more)
    theirs = gradients(F.conv2d, x, w, dy, *more)
    truth = gradients(F.conv2d, *(t.double() for t in (x, w, dy)), *more)
    for result, torchs, exact in zip(ours, theirs, truth, strict=True):
        assert_good(result, torchs, exact, dtype)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_input_reaches_the_outputs_that_read_it(bad, isa):
    """At every place of a tile: outputs that do not read it are finite and right."""
    clean, w = plain()
    for i, j in itertools.product(range(5, 24, 3), range(1, 25, 4)):
        x = clean.clone()
        x[3, 5, i, j] = bad
        with fastconv.winograd_6x6():
            ours = fastconv.conv2d(x, w, padding=1)
        truth = F.conv2d(x.double(), w.double(), padding=1)
        assert_good(ours, F.conv2d(x, w, padding=1), truth, torch.float32, FACTOR, f"{i}, {j}")


def test_it_ends_with_its_block_also_by_an_exception():
    x, w = plain()
    before = fastconv.conv2d(x, w, padding=1)
    with pytest.raises(KeyError), fastconv.winograd_6x6():
        raise KeyError
    assert torch.equal(fastconv.conv2d(x, w, padding=1), before)
    with fastconv.winograd_6x6():
        within = fastconv.conv2d(x, w, padding=1)
        with fastconv.winograd_6x6(False):
            assert torch.equal(fastconv.conv2d(x, w, padding=1), before)
        assert torch.equal(fastconv.conv2d(x, w, padding=1), within)
    assert not torch.equal(within, before)
    decorated = fastconv.winograd_6x6()(fastconv.conv2d)
    assert torch.equal(decorated(x, w, padding=1), within)
    assert torch.equal(fastconv.conv2d(x, w, padding=1), before)


def test_other_threads_go_on_as_before():
    x, w = plain()
    before, results = fastconv.conv2d(x, w, padding=1), []
    with fastconv.winograd_6x6():
        thread = threading.Thread(target=lambda: results.append(fastconv.conv2d(x, w, padding=1)))
        thread.start()
        thread.join()
    assert torch.equal(results[0], before)


@pytest.mark.parametrize(
    "size", [(20, 16, 14, 14), (9, 16, 13, 28), (9, 16, 19, 19), (1, 16, 52, 56)]
)
def test_small_maps_and_other_layers_are_as_before(size):
    x, w = plain(size=size)
    with fastconv.winograd_6x6():
        within = fastconv.conv2d(x, w, padding=1), fastconv.conv2d(x, w, stride=2, padding=1)
    outside = fastconv.conv2d(x, w, padding=1), fastconv.conv2d(x, w, stride=2, padding=1)
    assert all(map(torch.equal, within, outside))


def test_a_layer_packs_its_weights_for_the_tile_of_the_moment():
    x, w = plain()
    layer = fastconv.nn.Conv2d(16, 20, 3, padding=1, bias=False).eval().requires_grad_(False)
    layer.weight.copy_(w)
    outside = layer(x)
    with fastconv.winograd_6x6():
        within = [layer(x) for _ in range(2)]
        called = fastconv.conv2d(x, w, padding=1)
    truth = F.conv2d(x.double(), w.double(), padding=1)
    assert torch.equal(*within) and not torch.equal(within[0], outside)
    for result in (*within, called):
        assert_good(result, F.conv2d(x, w, padding=1), truth, torch.float32, FACTOR)
    assert torch.equal(layer(x), outside)


def test_it_does_not_depend_on_the_threads():
    x, w, dy, *more = operands(PROBLEMS[2], "channels_last")
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with fastconv.winograd_6x6():
                runs.append(gradients(fastconv.conv2d, x, w, dy, *more))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *runs))


def test_a_bias_a_residual_and_an_activation():
    x, w = plain()
    b, residual = torch.randn(20), torch.randn(6, 20, 24, 25)
    with fastconv.winograd_6x6():
        ours = fastconv.conv2d(x, w, b, padding=1, residual=residual, activation="relu")
    theirs, truth = (
        (F.conv2d(x.to(t), w.to(t), b.to(t), padding=1) + residual.to(t)).relu()
        for t in (torch.float32, torch.double)
    )
    assert_good(ours, theirs, truth, torch.float32, FACTOR)
