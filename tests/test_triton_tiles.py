"""Which tiles and splits the Triton backend chooses for layers of a GPU: nothing runs.

The torch side meets tensors without data, and its launches are recorded.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from fastconv.triton import conv, conv_grad, launch, sums, tiles  # noqa: E402

DEVICES = {"A100": tiles.Device(80, 108), "H100": tiles.Device(90, 132)}
# N, C, size, K, kernel, stride: of ResNet-50, VGG 16 and GoogLeNet at batch 32.
LAYERS = {
    "64->64 @56": (32, 64, 56, 64, 3, 1),
    "256->256 @14": (32, 256, 14, 256, 3, 1),
    "512->512 @7": (32, 512, 7, 512, 3, 1),
    "128->128 @112": (32, 128, 112, 128, 3, 1),
    "1x1 64->256 @56": (32, 64, 56, 256, 1, 1),
    "1x1 1024->2048 @14/2": (32, 1024, 14, 2048, 1, 2),
    "5x5 32->96 @14": (32, 32, 14, 96, 5, 1),
}


@pytest.fixture(params=DEVICES.values(), ids=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def launched(device, monkeypatch):
    """(kernel, grid, constants) of every launch on the device."""
    launches = []

    def record(kernel, grid, tensor, *args, **constants):
        launches.append((kernel.__name__, grid, constants))

    for module in (conv, conv_grad, sums):
        monkeypatch.setattr(module, "launch", record)
        monkeypatch.setattr(module, "device_of", lambda tensor: device)
    return launches


def half(*size):
    tensor = torch.empty(size, dtype=torch.float16, device="meta")
    return tensor.to(memory_format=torch.channels_last)


def blocks(grid) -> int:
    product = 1
    for size in grid:
        product *= size
    return product


@pytest.mark.parametrize("layer", LAYERS)
def test_weight_gradients_fill_the_device_with_the_largest_tile_that_fits(layer, device, launched):
    n, c, size, k, kernel, stride = LAYERS[layer]
    x, dy = half(n, c, size, size), half(n, k, size // stride, size // stride)
    dw = torch.empty(k, c, kernel, kernel, dtype=torch.float16, device="meta")
    window = (stride, stride, *[kernel // 2] * 4, 1, 1, 1)
    conv_grad.conv2d_weight_grad(dw, x, dy, kernel, kernel, *window, 0)
    _, grid, tile = launched[0]
    assert device.sms <= blocks(grid)
    if blocks(grid) > 2 * device.sms:  # more than a wave only where the result itself has more
        assert grid[2] == 1
    # A smaller tile would not have more of its outputs inside.
    assert (tile["BM"], tile["BN"]) == (128 if k > 64 else 64, min(c, 128))
    # The sum of splits is as wide as the device, or there is none.
    if grid[2] == 1:
        assert [name for name, *_ in launched] == ["conv_weight_grad"]
    else:
        (_, sum_grid, constants) = launched[1]
        assert 4 * blocks(sum_grid) * constants["BS"] >= device.sms


@pytest.mark.parametrize("k, size", [(64, 56), (256, 14), (2048, 7)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_bias_gradients_fill_the_device(k, size, layout, masked, device, launched):
    dy, db = half(32, k, size, size).to(memory_format=layout), torch.empty(k, device="meta")
    if masked:
        conv_grad.activation_bias_grad((torch.empty_like(dy), db), dy, dy, 1)
    else:
        conv_grad.conv2d_bias_grad(db, dy)
    _, grid, constants = launched[0]
    each = constants["BM"] * constants["BC"]
    # Four blocks on each multiprocessor, or two steps for each block.
    assert blocks(grid) >= min(3 * device.sms, dy.numel() // each // 4)
    under_way = each * 2 * (2 if masked else 1)
    assert constants["UNIT"] * 2 >= 8 or size == 7  # bytes of a load
    assert under_way >= 4 * 16 * 128 or layout == torch.contiguous_format and size == 7


def test_input_gradients_of_stride_1_take_the_largest_tile(device, launched):
    x, w = half(32, 256, 56, 56), half(256, 256, 3, 3)
    for stride, tile in ((1, (128, 128)), (2, (128, 64))):
        dy, window = half(32, 256, 56 // stride, 56 // stride), (stride, stride, *[1] * 4, 1, 1, 1)
        conv.conv2d_input_grad(x, dy, w, 56, 56, *window, 0)
        _, _, constants = launched.pop()
        assert (constants["BM"], constants["BN"]) == tile


@pytest.mark.parametrize("dtype, copies", [(torch.float16, False), (torch.float32, True)])
def test_input_gradients_in_half_types_read_the_weights_as_they_lie(dtype, copies, launched):
    x, w = half(2, 64, 14, 14).to(dtype), half(64, 64, 3, 3).to(dtype)
    conv.conv2d_input_grad(x, x, w, 14, 14, 1, 1, *[1] * 4, 1, 1, 1, 0)
    assert launched[0][2]["W_BY_DEPTH"] == copies


def test_a_parameter_is_launched_on_its_device(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: tensor)
    for tensor in (torch.ones(1), torch.nn.Parameter(torch.ones(1))):
        assert launch._on(tensor) is tensor


def test_operands_of_tensor_cores_begin_at_16_bytes(launched):
    """Of a slice the JIT would read value by value; rows of weights are those of a flat buffer."""
    x, w = half(2, 48, 9, 8), torch.empty(32 * 24 + 3, dtype=torch.float16, device="meta")
    at = {3: 0, 8: 8}  # of the first channel, as given and as launched
    for first, launched_at in at.items():
        operand = launch.channels_last(x[:, first : first + 24])
        assert operand.storage_offset() == launched_at and operand.stride(1) == 1
    rows = launch.rows_of_filters(w[3:].view(32, 24, 1, 1))
    assert rows.storage_offset() == 0 and rows.is_contiguous()
    assert launch.rows_of_filters(w[: 32 * 24].view(32, 24, 1, 1)).data_ptr() == w.data_ptr()
