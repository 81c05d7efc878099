"""What the theory of convolutional networks says, checked on fastconv's ops and models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv
from fastconv import models

random_problems = settings(derandomize=True, deadline=None, max_examples=60)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64)


def ones(*size: int) -> torch.Tensor:
    return torch.ones(*size, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------- cross-correlation and true convolution


def by_scipy(function, x: torch.Tensor, w: torch.Tensor, mode: str) -> torch.Tensor:
    """scipy's function of every input channel with its kernel, summed over the channels."""
    planes = [
        [
            sum(function(plane, kernel, mode) for plane, kernel in zip(image, kernels, strict=True))
            for kernels in w.numpy()
        ]
        for image in x.numpy()
    ]
    return torch.from_numpy(np.array(planes))


kernels = st.tuples(st.integers(1, 5), st.integers(1, 5))
images = st.tuples(st.integers(5, 12), st.integers(5, 12))


@random_problems
@given(images, kernels)
def test_conv2d_is_correlate2d(size, kernel):
    x, w = random(2, 3, *size), random(4, 3, *kernel)
    close(fastconv.conv2d(x, w), by_scipy(scipy.signal.correlate2d, x, w, "valid"))


@random_problems
@given(images, kernels)
def test_convolve2d_is_convolve2d(size, kernel):
    x, w = random(2, 3, *size), random(4, 3, *kernel)
    full = kernel[0] - 1, kernel[1] - 1
    close(fastconv.convolve2d(x, w), by_scipy(scipy.signal.convolve2d, x, w, "valid"))
    close(fastconv.convolve2d(x, w, padding=full), by_scipy(scipy.signal.convolve2d, x, w, "full"))


def test_same_padding_is_scipys_same():
    x, w = random(2, 3, 7, 10), random(4, 3, 3, 5)
    expected = by_scipy(scipy.signal.correlate2d, x, w, "same")
    close(fastconv.conv2d(x, w, padding="same"), expected)
    expected = by_scipy(scipy.signal.convolve2d, x, w, "same")
    close(fastconv.convolve2d(x, w, padding="same"), expected)


def test_the_two_differ_by_a_flip_only():
    x, w = random(2, 3, 7, 10), random(4, 3, 3, 2)
    assert not torch.allclose(fastconv.conv2d(x, w), fastconv.convolve2d(x, w))
    close(fastconv.conv2d(x, w), fastconv.convolve2d(x, w.flip(2, 3)))


# -------------------------------------------------------------------------------- output sizes

sizes = st.tuples(st.integers(5, 30), st.integers(5, 30))


@random_problems
@given(sizes, kernels, st.tuples(st.integers(0, 7), st.integers(0, 7)), st.integers(1, 4))
def test_output_size_is_n_minus_k_plus_p_plus_s_over_s(n, k, p, s):
    """p is the total padding: an odd one has its extra row at the end."""
    (top, left), (bottom, right) = ((t // 2 for t in p), (t - t // 2 for t in p))
    padded = torch.nn.functional.pad(ones(1, 1, *n), (left, right, top, bottom))
    expected = [(n[i] - k[i] + p[i] + s) // s for i in (0, 1)]
    assert list(fastconv.conv2d(padded, ones(1, 1, *k), stride=s).shape[2:]) == expected
    if p[0] % 2 == 0 and p[1] % 2 == 0:  # what the argument can say: it counts one side
        y = fastconv.conv2d(
            ones(1, 1, *n), ones(1, 1, *k), stride=s, padding=(p[0] // 2, p[1] // 2)
        )
        assert list(y.shape[2:]) == expected


@random_problems
@given(sizes, kernels)
def test_same_is_a_total_padding_of_k_minus_1(n, k):
    x, w = random(1, 1, *n), random(1, 1, *k)
    p = k[0] - 1, k[1] - 1
    assert tuple(n[i] - k[i] + p[i] + 1 for i in (0, 1)) == n
    y = fastconv.conv2d(x, w, padding="same")
    assert y.shape == x.shape
    before, after = [t // 2 for t in p], [t - t // 2 for t in p]
    padded = torch.nn.functional.pad(x, (before[1], after[1], before[0], after[0]))
    close(y, fastconv.conv2d(padded, w))


def test_ten_5x5_layers_turn_240_into_200():
    x, w = torch.rand(1, 1, 240, 240), torch.rand(1, 1, 5, 5) / 25
    shrunk = kept = x
    for _ in range(10):
        shrunk = fastconv.conv2d(shrunk, w)
        kept = fastconv.conv2d(kept, w, padding="same")
    assert shrunk.shape[2:] == (240 - 10 * (5 - 1),) * 2 == (200, 200)
    assert kept.shape[2:] == (240, 240)


# --------------------------------------------------------------------- equivariance, invariance


@pytest.mark.parametrize("shift", [(1, 0), (0, -2), (3, 4), (-2, 1)])
def test_convolution_commutes_with_translation(shift):
    x, w = torch.zeros(2, 3, 32, 40, dtype=torch.float64), random(4, 3, 3, 5)
    x[:, :, 12:20, 15:25] = random(2, 3, 8, 10)  # a margin, so that nothing falls off the edge

    def move(image: torch.Tensor, times: int = 1) -> torch.Tensor:
        return image.roll((times * shift[0], times * shift[1]), (2, 3))

    y = fastconv.conv2d(x, w, padding="same")
    close(fastconv.conv2d(move(x), w, padding="same"), move(y))
    assert not torch.allclose(move(y), y)
    y = fastconv.conv2d(x, w, padding=(1, 2), stride=2)  # strided: by whole strides
    close(fastconv.conv2d(move(x, times=2), w, padding=(1, 2), stride=2), move(y))


@pytest.mark.parametrize("window", [(2, 2), (3, 2), (2, 4)])
def test_a_maximum_moving_inside_its_window_is_not_seen(window):
    height, width = window
    x = torch.rand(2, 3, 4 * height, 3 * width)

    def pooled_with_peak(row: int, column: int) -> torch.Tensor:
        moved = x.clone()
        moved[:, :, height : 2 * height, width : 2 * width] = 0.5
        moved[:, :, row, column] = 2
        return fastconv.max_pool2d(moved, window)

    still = pooled_with_peak(height, width)
    assert (still[:, :, 1, 1] == 2).all()
    for row in range(height, 2 * height):
        for column in range(width, 2 * width):
            assert torch.equal(pooled_with_peak(row, column), still)
    assert not torch.equal(pooled_with_peak(2 * height, width), still)  # the window below


# ------------------------------------------------------------------ 1x1 convolution, bottleneck


def multiplications(x: torch.Tensor, w: torch.Tensor, padding: int = 0) -> int:
    """Counted, not computed: with ones everywhere each output is the number of its products."""
    n, c, height, width = x.shape
    padded = ones(n, c, height + 2 * padding, width + 2 * padding)
    return int(fastconv.conv2d(padded, torch.ones_like(w, dtype=torch.float64)).sum())


def test_1x1_convolution_is_a_fully_connected_layer_at_every_pixel():
    x = random(1, 192, 56, 56)
    dense = torch.nn.Linear(192, 32, dtype=torch.float64).requires_grad_(False)
    y = fastconv.conv1x1(x, dense.weight, dense.bias)
    assert y.shape == (1, 32, 56, 56)
    close(y, dense(x.movedim(1, -1)).movedim(-1, 1))
    close(y[0, :, 17, 40], dense(x[0, :, 17, 40]))
    close(y, fastconv.conv2d(x, dense.weight[:, :, None, None], dense.bias))


def test_multiplications_saved_behind_a_bottleneck():
    """A 5x5 with 32 outputs on 56x56x192, with and without 32 1x1 before it."""
    wide, narrow = ones(1, 192, 56, 56), ones(1, 32, 56, 56)
    direct = multiplications(wide, ones(32, 192, 5, 5), padding=2)
    reduced = multiplications(wide, ones(32, 192, 1, 1))
    behind = multiplications(narrow, ones(32, 32, 5, 5), padding=2)
    assert direct == 56 * 56 * 32 * (5 * 5 * 192) == 481_689_600
    assert reduced == 56 * 56 * 32 * 192 == 19_267_584
    assert behind == 56 * 56 * 32 * (5 * 5 * 32) == 80_281_600
    assert direct == 6 * behind  # 192 / 32
    assert direct - (reduced + behind) == 382_140_416  # four fifths of them saved
    assert direct / (reduced + behind) == pytest.approx(4.84, abs=0.01)


def test_multiplications_of_googlenets_first_5x5():
    """Inception 3a: 28x28x192, 16 1x1 before 32 5x5, a tenth of the direct way."""
    wide, narrow = ones(1, 192, 28, 28), ones(1, 16, 28, 28)
    direct = multiplications(wide, ones(32, 192, 5, 5), padding=2)
    reduced = multiplications(wide, ones(16, 192, 1, 1))
    behind = multiplications(narrow, ones(32, 16, 5, 5), padding=2)
    assert direct == 28 * 28 * 32 * (5 * 5 * 192) == 120_422_400
    assert reduced + behind == 2_408_448 + 10_035_200 == 12_443_648


# ------------------------------------------------------------------------ local, shared weights


def test_a_dense_layer_on_a_megapixel_has_a_billion_weights():
    pixels, hidden = 1000 * 1000, 1000
    dense = torch.nn.Linear(pixels, hidden, bias=False, device="meta")
    assert dense.weight.numel() == 10**9
    local = fastconv.nn.Conv2d(1, hidden, (5, 4), bias=False)
    assert local.weight.numel() == 1000 * 5 * 4 == 20_000
    assert dense.weight.numel() // local.weight.numel() == 50_000


def test_weights_are_shared_by_every_size_of_image():
    layer = fastconv.nn.Conv2d(1, 2, (5, 4)).requires_grad_(False)
    megapixel = torch.rand(1, 1, 1000, 1000)
    assert layer(megapixel).shape == (1, 2, 996, 997)
    detail = layer(megapixel[:, :, 300:330, 400:440])
    torch.testing.assert_close(layer(megapixel)[:, :, 300:326, 400:437], detail)


def test_weights_are_local():
    """A pixel reaches the R x S outputs whose windows hold it and no other."""
    x, w = random(1, 1, 12, 15), random(1, 1, 5, 4)
    touched = x.clone()
    touched[0, 0, 6, 7] += 1
    changed = (fastconv.conv2d(touched, w) != fastconv.conv2d(x, w))[0, 0]
    rows, columns = changed.nonzero().T
    assert (rows.min(), rows.max()) == (6 - 4, 6)
    assert (columns.min(), columns.max()) == (7 - 3, 7)
    assert changed.sum() == 5 * 4


# ------------------------------------------------------------------------ sums of shifted ReLUs


def sum_of_relus(x: torch.Tensor, knots: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
    """The network f(t0) + sum_i (slope_i - slope_{i-1}) relu(x - t_i): two 1x1 convolutions.

    It passes through (knots, heights), linear between.
    """
    slopes = heights.diff() / knots.diff()
    bends = slopes.diff(prepend=torch.zeros(1, dtype=slopes.dtype))
    shifted = fastconv.conv1x1(
        x.view(1, 1, 1, -1), ones(len(slopes), 1), -knots[:-1], activation="relu"
    )
    return fastconv.conv1x1(shifted, bends.view(1, -1), heights[:1]).flatten()


@random_problems
@given(
    st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True).map(sorted),
    st.data(),
)
def test_shifted_relus_reproduce_every_piecewise_linear_function(knots, data):
    """Exactly: whole slopes and knots keep the arithmetic free of rounding."""
    slopes = torch.tensor(
        data.draw(st.lists(st.integers(-9, 9), min_size=len(knots) - 1, max_size=len(knots) - 1)),
        dtype=torch.float64,
    )
    knots = torch.tensor(knots, dtype=torch.float64)
    heights = torch.cat([ones(1), 1 + (slopes * knots.diff()).cumsum(0)])
    x = torch.arange(knots[0].item(), knots[-1].item() + 1 / 8, 1 / 8, dtype=torch.float64)
    piece = (torch.searchsorted(knots, x, right=True) - 1).clamp(max=len(slopes) - 1)
    expected = heights[piece] + slopes[piece] * (x - knots[piece])
    assert torch.equal(sum_of_relus(x, knots, heights), expected)


def test_shifted_relus_approximate_a_smooth_function_at_second_order():
    """The error of linear interpolation: at most h^2 / 8 max|f''|, a quarter for half the h."""
    x = torch.linspace(0, 3, 4801, dtype=torch.float64)
    errors = []
    for pieces in (8, 16, 32, 64, 128):
        knots = torch.linspace(0, 3, pieces + 1, dtype=torch.float64)
        errors.append((sum_of_relus(x, knots, knots.sin()) - x.sin()).abs().max().item())
        assert errors[-1] <= (3 / pieces) ** 2 / 8
    rates = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert rates == pytest.approx([2] * 4, abs=0.06)


# ------------------------------------------------------------------------------------ networks


def test_nin_has_no_fully_connected_layer():
    kinds = {type(module) for module in models.nin().modules()}
    assert not any(issubclass(kind, torch.nn.Linear) for kind in kinds)
    assert fastconv.nn.GlobalAvgPool2d in kinds or fastconv.nn.AdaptiveAvgPool2d in kinds
    assert any(isinstance(module, torch.nn.Linear) for module in models.lenet().modules())


def test_global_average_pooling_has_no_parameters():
    layer = fastconv.nn.GlobalAvgPool2d()
    assert list(layer.parameters()) == [] and list(layer.buffers()) == []
    x = random(2, 10, 5, 7)
    close(layer(x), x.mean((2, 3), keepdim=True))


def kernel_sizes(path: torch.nn.Module) -> list[tuple[int, int]]:
    """Of the path's convolutions, in order."""
    return [m.kernel_size for m in path.modules() if isinstance(m, torch.nn.Conv2d)]


def test_an_inception_block_is_its_four_paths_side_by_side():
    block = models.googlenet().inception3a.double().eval()
    paths = [block.branch1, block.branch2, block.branch3, block.branch4]
    assert [kernel_sizes(path) for path in paths] == [
        [(1, 1)],
        [(1, 1), (3, 3)],
        [(1, 1), (5, 5)],
        [(1, 1)],  # behind the 3x3 max pooling
    ]
    x = random(2, 192, 9, 13)
    with torch.no_grad():
        outputs = [path(x) for path in paths]
        assert [output.shape[1] for output in outputs] == [64, 128, 32, 32]
        assert torch.equal(block(x), torch.cat(outputs, 1))


def silence(block: torch.nn.Module) -> None:
    """Sets the weights of the block's convolutions to zero."""
    for module in block.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.zeros_(module.weight)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("network", "channels"), [("resnet18", 64), ("resnet50", 256)])
def test_a_residual_block_of_zero_weights_is_the_identity_through_its_relu(
    network, channels, training
):
    block = models.NETWORKS[network]().layer1[1].double().train(training)
    x = random(2, channels, 5, 7)
    with torch.no_grad():
        assert not torch.allclose(block(x), x.relu())
        silence(block)
        assert torch.equal(block(x), x.relu())
        assert torch.equal(block(x.abs()), x.abs())


def test_a_deeper_network_of_such_blocks_computes_what_the_shallower_does():
    """ResNet-34 has ResNet-18's blocks and, in each stage, one to four more: those are silent."""
    shallow, deep = models.resnet18().eval(), models.resnet34().eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = shallow(x)
        more = deep.load_state_dict(shallow.state_dict(), strict=False)
        assert not more.unexpected_keys and more.missing_keys
        assert not torch.allclose(deep(x), expected)
        for stage in (deep.layer1, deep.layer2, deep.layer3, deep.layer4):
            for block in list(stage)[2:]:
                silence(block)
        assert torch.equal(deep(x), expected)
