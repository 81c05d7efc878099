"""The choice of a tile and of split-K: pure, for large GPUs and a laptop's."""

import pytest
from emulator import kernels

from fastconv.gpus import GPUS
from fastconv.testing.layers import LAYERS

WIDTHS = [(8 * i, 8 * j) for i in range(1, 6) for j in range(1, 6)]
DEVICES = {name: kernels.Device(*gpu.facts()) for name, gpu in GPUS.items()}


def choose(x, w, math="f16", device="A100", **settings):
    choice = kernels.choose(kernels.problem(x, w, **settings), math, DEVICES[device])
    return kernels.tiles(math)[choice.tile], choice


def problem_of(layer, N):
    return kernels.problem(
        (N, layer.C, layer.H, layer.W),
        (layer.K, layer.C // layer.groups, layer.R, layer.S),
        stride=(layer.stride,) * 2,
        padding=(layer.padding,) * 2,
        groups=layer.groups,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("math", kernels.MATHS)
def test_every_layer_gets_a_tile_that_runs(math, device):
    for layer in LAYERS:
        for N in (1, 32, 256):
            p = problem_of(layer, N)
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
            p = problem_of(layer, N)
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


def test_what_is_remembered_is_of_the_same_problem_arithmetic_direction_and_gpu():
    """More problems than the table has places, and some that differ from the first in one thing."""
    first = ((8, 512, 14, 14), (512, 512, 3, 3)), {"padding": (1, 1)}
    others = [(((n, c, 14, 14), (k, c, 3, 3)), {}) for n in range(1, 9) for c, k in WIDTHS]
    others += [(first[0], {"padding": (1, 2)}), (first[0], first[1] | {"stride": (2, 1)})]
    others.append((((8, 512, 14, 14), (512, 256, 3, 3)), first[1] | {"groups": 2}))
    asked = [(p, *how) for p in [first, *others, first] for how in (("f16", "H100", "forward"),)]
    for how in (("bf16", "H100"), ("tf32", "H100"), ("f16", "A100"), ("f16", "RTX 4060 Laptop")):
        asked += [(first, *how, d) for d in ("forward", "input_grad", "weight_grad")]
    for (sizes, settings), math, device, direction in 2 * asked:
        p = kernels.problem(*sizes, **settings)
        truth, known = (
            kernels.choose(p, math, DEVICES[device], direction, known) for known in (False, True)
        )
        assert bytes(truth) == bytes(known)


def test_a_weight_gradient_of_few_weights_and_many_pixels_fills_the_gpu():
    x, w = (64, 64, 56, 56), (64, 64, 1, 1)
    choice = kernels.choose(kernels.problem(x, w), "f16", DEVICES["H100"], "weight_grad")
    assert choice.splits > 96 and choice.waves <= 1


def test_a_weight_gradient_of_two_tiles_is_split_as_far_as_it_pays():
    """Between one split and a full GPU: of 392 steps no split has fewer than four, none 392."""
    p = kernels.problem((32, 64, 56, 56), (128, 64, 1, 1), stride=(2, 2))
    for name in ("A100", "H100", "H200"):
        choice = kernels.choose(p, "f16", DEVICES[name], "weight_grad")
        assert 32 <= choice.splits <= 98, name


def depth_of(p, direction):
    taps = -(-p.R // p.stride_h) * -(-p.S // p.stride_w)
    lengths = {"forward": p.R * p.S * p.C, "input_grad": taps * p.K, "weight_grad": p.N * p.P * p.Q}
    return lengths[direction] // (1 if direction == "weight_grad" else p.G)


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("device", ["H100", "RTX 4060 Laptop"])
def test_the_choice_is_close_to_the_best_of_all_tiles_and_splits(device, direction):
    gpu = DEVICES[device]
    for layer in LAYERS[::3]:
        p = problem_of(layer, 32)
        if kernels.refusal("conv_implicit_gemm", p, "f16"):
            continue
        chosen = kernels.choose(p, "f16", gpu, direction).cycles
        best = min(
            kernels.cycles(p, "f16", gpu, direction, tile, splits)
            for tile, t in enumerate(kernels.tiles("f16", direction))
            if t.stages * (t.bm + t.bn) * t.bk * 2 + 4096 <= gpu.shared_per_sm
            for splits in range(1, 1 + max(1, depth_of(p, direction) // (t.bk * 4)))
            if splits <= 300
        )
        assert chosen <= 1.06 * best, (layer.name, chosen, best)


def test_more_of_any_resource_is_never_slower():
    """Of one tile, where more multiprocessors are twice as many."""

    def scaled(**factors):
        fields = {name: getattr(DEVICES["H100"], name) for name, _ in kernels.Device._fields_}
        return kernels.Device(*(v * factors.get(name, 1) for name, v in fields.items()))

    for layer in LAYERS[::5]:
        p = problem_of(layer, 32)
        if kernels.refusal("conv_implicit_gemm", p, "f16"):
            continue
        for d in ("forward", "input_grad", "weight_grad"):
            for tile in range(len(kernels.tiles("f16", d))):
                cycles = [
                    kernels.cycles(p, "f16", gpu, d, tile, 4)
                    for gpu in (scaled(), scaled(bandwidth=2), scaled(l2=2), scaled(sms=2))
                ]
                assert cycles[0] >= max(cycles[1:]) > 0, (layer.name, d, tile, cycles)


def test_memory_bounds_a_1x1_of_large_maps_and_its_bandwidth_counts():
    """Bytes over nine tenths of the datasheet, and little more; loads and stores overlap."""
    p = kernels.problem((32, 64, 56, 56), (256, 64, 1, 1))
    moved = 2 * (32 * 56 * 56 * (64 + 256) + 64 * 256)
    for name in ("A100", "H100", "H200"):
        gpu = DEVICES[name]
        choice = kernels.choose(p, "f16", gpu)
        least = moved / (0.9 * gpu.bandwidth)
        assert least < choice.cycles / gpu.clock < 1.2 * least, name
        assert kernels.tiles("f16")[choice.tile].blocks >= 2, name


def test_parts_are_paid_for_by_their_bytes_and_a_launch():
    """Sixteen parts of 4 MB: read at 12 bytes a cycle and multiprocessor, beyond L2 written too."""
    p, gpu = kernels.problem((32, 1024, 14, 14), (1024, 1024, 1, 1)), DEVICES["H100"]

    def cycles(splits, l2=1 << 30):
        other = kernels.Device(gpu.arch, gpu.sms, gpu.shared_per_sm, l2, gpu.clock, gpu.bandwidth)
        return kernels.cycles(p, "f16", other, "weight_grad", 0, splits)

    part = 4 * 1024 * 1024
    assert cycles(16) - cycles(8) > 8 * part / (12 * gpu.sms)
    assert cycles(16, l2=16 << 20) > cycles(16)
    small = kernels.problem((1, 8, 3, 3), (8, 8, 1, 1))
    whole, split = (kernels.cycles(small, "f16", gpu, "forward", 4, splits) for splits in (1, 2))
    assert 2e-6 < (split - whole) / gpu.clock < 3e-6


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
