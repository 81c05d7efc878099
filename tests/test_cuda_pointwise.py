"""Residual add, activation gradient and transposes under the emulator.

Each runs in every order of its fibers, on poisoned and guarded buffers (``simt.every_order``).
"""

import emulator
import pytest
import torch
from emulator import simt
from emulator.simt import DTYPES, dtype_id, tensor

from fastconv.testing import reference
from fastconv.testing.compare import assert_good

SIZE = (2, 16, 5, 9)
ODD = (3, 7, 5, 9)  # 945 elements: the last 16 bytes are not whole

# The two operands' layouts, and whether 16 bytes are read at a time.
LAYOUTS = [
    ("nhwc", "nhwc", SIZE, True),
    ("nchw", "nchw", ODD, True),
    ("nhwc", "nhwc", ODD, True),
    ("nhwc", "nchw", SIZE, False),
    ("nchw", "nhwc", ODD, False),
    ("nhwc sliced", "nchw sliced", SIZE, False),
    ("channels", "nhwc", SIZE, True),
    ("nhwc", "expanded", SIZE, False),
    ("nhwc", "nhwc", (1, 1, 1, 1), False),
]


def operand(layout, size, dtype):
    if layout == "expanded":
        return torch.randn(1).to(dtype).expand(size)
    if layout == "channels":  # a slice of a concatenation
        n, c, h, w = size
        return tensor((n, c + 32, h, w), dtype)[:, 16:-16]
    return tensor(size, dtype, layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", LAYOUTS, ids=lambda c: f"{c[0]} {c[1]} {c[2]}".replace(", ", ","))
def test_residual_add(case, dtype):
    *layouts, size, wide = case
    a, b = (operand(layout, size, dtype) for layout in layouts)
    for activation in (None, "relu", "sigmoid"):
        kernel = f"residual_add_{simt.NAMES[dtype]}{'_x16' * wide}"
        y = simt.every_order(simt.add, "residual_add", a, b, activation, kernel=kernel)
        truth = reference.residual_add(a, b, activation)
        assert_good(y, reference.activate(a + b, activation), truth, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", LAYOUTS, ids=lambda c: f"{c[0]} {c[1]} {c[2]}".replace(", ", ","))
def test_activation_grad(case, dtype):
    *layouts, size, wide = case
    y, dy = (operand(layout, size, dtype) for layout in layouts)
    derivatives = {None: lambda y: 1, "relu": lambda y: y > 0, "sigmoid": lambda y: y * (1 - y)}
    for activation, derivative in derivatives.items():
        kernel = f"activation_grad_{simt.NAMES[dtype]}{'_x16' * wide}"
        dx = simt.every_order(simt.add, "activation_grad", dy, y, activation, kernel=kernel)
        truth = dy.double() * derivative(y.double())
        assert_good(dx, dy * derivative(y), truth, dtype)


def test_nan_passes():
    a = torch.tensor([torch.nan, torch.inf, -torch.inf, -1.0]).view(1, 4, 1, 1)
    zero = torch.zeros_like(a)
    y = simt.add("residual_add", a, zero, "relu").flatten()
    assert y[0].isnan() and y[1:].tolist() == [torch.inf, 0, 0]
    dx = simt.add("activation_grad", a, torch.ones_like(a), "relu").flatten()
    assert dx[0].isnan() and dx[1:].tolist() == [torch.inf, -torch.inf, -1]
    dx = simt.add("activation_grad", torch.ones_like(a), a, "relu").flatten()
    assert dx.tolist() == [1, 1, 0, 0]


# Tails in both directions, of pairs too; up to four channels; more channels than pixels.
TRANSPOSED = [(2, 37, 9, 5), (3, 3, 17, 19), (1, 4, 8, 32), (2, 1, 9, 7), (1, 70, 1, 3)]
TRANSPOSED += [(2, 66, 10, 7), (2, 130, 3, 6), (1, 6, 3, 43), (2, 38, 9, 5)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("size", TRANSPOSED, ids=str)
def test_transpose(size, dtype):
    x = torch.randn(size).to(dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    shapes = ("4x256", "256x4") if size[1] <= 4 else ("32x32", "32x32")
    if size[2] * size[3] <= 4:
        shapes = ("256x4", "4x256")
    pairs = size[1] % 2 == 0 and size[2] * size[3] % 2 == 0 and shapes[0] == "32x32"
    for kernel, source, to_last in zip(shapes, (x, last), (True, False), strict=True):
        name = f"transpose_{kernel}_{8 * x.itemsize}"
        if pairs and x.itemsize == 2:
            name = "transpose_pairs_64x64"
        assert torch.equal(simt.every_order(simt.transpose, source, to_last, kernel=name), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("size", [(1, 64, 8, 8), (1, 32, 8, 5), (1, 4, 32, 16)], ids=str)
def test_transpose_has_no_bank_conflicts(size, dtype):
    x = torch.randn(size).to(dtype)
    for last in (True, False):
        emulator.take_bank_count()
        source = x if last else x.contiguous(memory_format=torch.channels_last)
        simt.transpose(source, last, count_banks=True)
        phases, cycles = emulator.take_bank_count()
        assert phases > 0 and cycles == phases
