"""The choice of a tile and of split-K: pure, for a large, a larger and a laptop GPU."""

import pytest
from emulator import kernels

from fastconv.gpus import GPUS
from fastconv.testing.layers import LAYERS

DEVICES = {n: kernels.Device(g.arch, g.sms, g.shared_per_sm) for n, g in GPUS.items()}


def choose(x, w, math="f16", device="A100", **settings):
    choice = kernels.choose(kernels.problem(x, w, **settings), math, DEVICES[device])
    return kernels.tiles(math)[choice.tile], choice


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("math", kernels.MATHS)
def test_every_layer_gets_a_tile_that_runs(math, device):
    for layer in LAYERS:
        for N in (1, 32, 256):
            p = kernels.problem(
                (N, layer.C, layer.H, layer.W),
                (layer.K, layer.C // layer.groups, layer.R, layer.S),
                stride=(layer.stride,) * 2,
                padding=(layer.padding,) * 2,
                groups=layer.groups,
            )
            if kernels.refusal("conv_implicit_gemm", p, math):
                continue
            choice = kernels.choose(p, math, DEVICES[device])
            tile = kernels.tiles(math)[choice.tile]
            depth = p.R * p.S * p.C // p.G
            element = 2 if math in ("f16", "bf16") else 4
            shared = tile.stages * (tile.bm + tile.bn) * tile.bk * element
            assert shared + 1024 <= DEVICES[device].shared_per_sm, layer.name
            assert choice.splits >= 1 and choice.waves > 0
            if choice.splits > 1:  # whole steps, and none left without work
                assert choice.split_depth % tile.bk == 0
                assert (choice.splits - 1) * choice.split_depth < depth
            assert choice.splits * choice.split_depth >= depth


@pytest.mark.parametrize("direction", ["input_grad", "weight_grad"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("math", kernels.MATHS)
def test_every_layer_gets_tiles_of_its_gradients(math, device, direction):
    element = 2 if math in ("f16", "bf16") else 4
    for layer in LAYERS:
        for N in (1, 32, 256):
            p = kernels.problem(
                (N, layer.C, layer.H, layer.W),
                (layer.K, layer.C // layer.groups, layer.R, layer.S),
                stride=(layer.stride,) * 2,
                padding=(layer.padding,) * 2,
                groups=layer.groups,
            )
            if kernels.refusal("conv_implicit_gemm", p, math):
                continue
            choice = kernels.choose(p, math, DEVICES[device], direction)
            tile = kernels.tiles(math, direction)[choice.tile]
            shared = tile.stages * (tile.bm + tile.bn) * tile.bk * element + 3072
            assert shared + 1024 <= DEVICES[device].shared_per_sm, layer.name
            taps = -(-p.R // p.stride_h) * -(-p.S // p.stride_w)  # the most of a stride phase
            depth = taps * p.K // p.G if direction == "input_grad" else p.N * p.P * p.Q
            assert choice.splits >= 1 and choice.waves > 0
            assert choice.splits * choice.split_depth >= depth
            assert (choice.splits - 1) * choice.split_depth < depth


def test_a_weight_gradient_of_few_weights_and_many_pixels_fills_the_gpu():
    x, w = (64, 64, 56, 56), (64, 64, 1, 1)
    choice = kernels.choose(kernels.problem(x, w), "f16", DEVICES["H100"], "weight_grad")
    assert choice.splits > 96 and choice.waves <= 1


def test_large_problems_take_the_largest_tiles_and_no_split():
    for device in ("A100", "H100"):
        tile, choice = choose((64, 256, 56, 56), (256, 256, 3, 3), padding=(1, 1), device=device)
        assert tile.bm * tile.bn >= 128 * 128 and choice.splits == 1


def test_small_deep_problems_are_split():
    tile, choice = choose((1, 512, 7, 7), (512, 512, 3, 3), padding=(1, 1))
    assert choice.splits > 4 and tile.bm * tile.bn <= 128 * 64
    assert choice.waves <= 1


def test_few_output_channels_take_a_narrow_tile():
    assert choose((32, 192, 28, 28), (32, 192, 1, 1))[0].bn == 32
    assert choose((32, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1))[0].bn <= 64


def test_a_laptop_takes_the_tile_of_three_stages():
    tile, _ = choose((32, 128, 56, 56), (128, 128, 3, 3), padding=(1, 1), device="RTX 4060 Laptop")
    assert (tile.bm, tile.bn, tile.stages) == (128, 128, 3)


@pytest.mark.parametrize(
    "x, w, settings, reason",
    [
        ((1, 12, 5, 6), (16, 12, 3, 3), {}, "filling them up would not pay"),
        ((1, 16, 5, 6), (16, 4, 3, 3), {"groups": 4}, "channels of a group are not whole"),
        ((1, 16, 5, 6), (20, 16, 3, 3), {}, "filling them up would not pay"),
        ((8, 1, 999, 999), (64, 1, 9, 9), {}, None),
        ((8, 1, 999, 999), (7, 1, 15, 15), {}, "filling them up would not pay"),
        ((1, 8, 20, 6), (8, 8, 16, 3), {}, "larger than 15x15"),
        ((1 << 20, 8, 64, 64), (8, 8, 1, 1), {}, "32 bits"),
    ],
)
def test_refusals(x, w, settings, reason):
    p = kernels.problem(x, w, **settings)
    found = kernels.refusal("conv_implicit_gemm", p, "f16")
    assert found is None if reason is None else reason in found


def test_1x1_refuses_what_has_taps_or_padding():
    for w, settings, reason in (
        ((8, 8, 3, 1), {}, "1x1"),
        ((8, 8, 1, 1), {"padding": (1, 0)}, "out"),
    ):
        p = kernels.problem((1, 8, 5, 6), w, **settings)
        assert reason in kernels.refusal("conv1x1", p, "f32")
    assert kernels.refusal("conv1x1", kernels.problem((1, 8, 5, 6), (8, 8, 1, 1)), "f16") is None
    # Half a chunk of 16-bit channels is a whole one of float32.
    four = kernels.problem((1, 4, 5, 6), (4, 4, 1, 1))
    assert kernels.refusal("conv1x1", four, "tf32") is None
    assert "whole" in kernels.refusal("conv1x1", four, "bf16")
