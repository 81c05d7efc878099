"""The CUDA convolutions outside the tensor-core mainloop under the emulator, against float64.

Each runs in ascending, descending and random order of its fibers, which must agree to the bit, on
poisoned buffers that end and on buffers that begin at a page that cannot be accessed.
"""

import pytest
import torch
import torch.nn.functional as F
from emulator import simt
from emulator.simt import DTYPES, dtype_id, tensor

from fastconv.testing import reference
from fastconv.testing.compare import assert_good

# ---- conv_direct ----


def conv_reference(function, x, w, bias, residual, activation=None, padding=(0, 0), **settings):
    """By torch or by the reference: `padding` may be of four sides."""
    if len(padding) == 4:
        top, left, bottom, right = padding
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    y = function(x, w, bias, padding=padding, **settings)
    return reference.activate(y if residual is None else y + residual, activation)


def conv_operands(x, w, dtype, layouts=("nhwc",) * 3, bias=True, residual=True, **settings):
    p = simt.kernels.problem(x, w, **settings)
    depth = w[1] * w[2] * w[3]
    return (
        tensor(x, dtype, layouts[0]),
        tensor(w, dtype, layouts[1], depth**-0.5),
        torch.randn(2 * p.K).to(dtype)[::2] if bias else None,
        tensor((p.N, p.K, p.P, p.Q), dtype, layouts[2]) if residual else None,
    )


def check_conv(run, kernel, given, dtype, y=None, **settings):
    y = simt.every_order(run, *given, kernel=f"{kernel}_{simt.NAMES[dtype]}", y=y, **settings)
    double = [None if t is None else t.double() for t in given]
    truth = conv_reference(reference.conv2d, *double, **settings)
    assert_good(y, conv_reference(F.conv2d, *given, **settings), truth, dtype)
    return y


ALL = dict(stride=(2, 1), padding=(1, 2, 0, 3), dilation=(1, 2))
DIRECT = [
    # Tiles: tails in pixels, channels and depth; groups; every layout.
    ((2, 20, 7, 9), (70, 20, 3, 2), dict(activation="relu", **ALL), ("nhwc", "nhwc", "nchw")),
    ((2, 20, 7, 9), (24, 20, 3, 2), dict(activation="sigmoid", **ALL), ("nchw", "nchw", "nhwc")),
    ((1, 34, 5, 8), (40, 17, 3, 3), dict(groups=2, padding=(1, 1)), ("nhwc sliced",) * 3),
    ((1, 34, 5, 8), (40, 17, 3, 3), dict(groups=2, padding=(4, 3)), ("nchw sliced",) * 3),
    ((3, 5, 6, 11), (66, 5, 1, 1), dict(stride=(2, 3)), ("nchw", "nhwc", "nhwc")),
    # One output a thread: depthwise, groups of few channels.
    ((2, 12, 9, 7), (12, 1, 3, 2), dict(groups=12, **ALL), ("nhwc", "nchw", "nhwc")),
    ((2, 6, 8, 11), (9, 2, 2, 3), dict(groups=3, activation="relu", **ALL), ("nchw",) * 3),
    ((1, 35, 5, 4), (7, 35, 1, 2), dict(padding=(0, 1)), ("nhwc sliced", "nhwc", "nchw sliced")),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", DIRECT, ids=lambda c: f"{c[0]} {c[1]}".replace(", ", ","))
def test_conv_direct(case, dtype):
    x, w, settings, layouts = case
    given = conv_operands(x, w, dtype, layouts, **settings)
    narrow = "_narrow" if w[0] // settings.get("groups", 1) < 16 else ""
    check_conv(simt.conv_direct, f"conv_direct{narrow}", given, dtype, **settings)


@pytest.mark.parametrize("w", [(20, 6, 3, 2), (5, 6, 3, 2)], ids=["tile", "narrow"])
def test_conv_direct_leaves_padding_out(w):
    """Zero times an infinite weight is never made; an infinite input stays infinite."""
    x, w, _, _ = conv_operands((1, 6, 5, 7), w, torch.float32, padding=(2, 2))
    w[:, 2, 0, 0], w[:, 4, 2, 1] = torch.inf, -torch.inf
    x[0, 3, 2, 2], x[0, 1, 4, 6] = torch.inf, torch.nan
    name = "conv_direct_f32" if len(w) == 20 else "conv_direct_narrow_f32"
    y = simt.every_order(simt.conv_direct, x, w, padding=(2, 2), kernel=name)
    n, k, p, q = y.shape
    truth = torch.zeros(y.shape, dtype=torch.float64)
    for r in range(3):
        for s in range(2):
            for i in range(p):
                for j in range(q):
                    if 0 <= i + r - 2 < 5 and 0 <= j + s - 2 < 7:
                        taps = w[:, :, r, s].double() * x[0, :, i + r - 2, j + s - 2].double()
                        truth[0, :, i, j] += taps.sum(1)
    assert truth.isnan().any() and truth.isinf().any() and truth.isfinite().any()
    assert_good(y, truth.float(), truth, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
def test_conv_direct_expanded(dtype):
    """Strides of zero: one image for the batch, one channel for all, a residual of one value."""
    x = tensor((1, 1, 6, 9), dtype, "nchw").expand(3, 18, 6, 9)
    w = tensor((18, 18, 2, 3), dtype, "nchw", 0.1)
    residual = torch.randn(1, dtype=dtype).expand(3, 18, 5, 7)
    y = tensor((3, 18, 5, 7), dtype, "nchw")
    check_conv(simt.conv_direct, "conv_direct", (x, w, None, residual), dtype, y=y)


def test_conv_direct_beyond_32_bits():
    """Rows 2^30 elements apart: offsets need 64 bits. Untouched pages take no memory."""
    x = torch.empty_strided((1, 2, 4, 3), (1, 1, 2**30, 5), dtype=torch.float16)
    x.copy_(torch.randn(x.shape))
    for k in (3, 17):
        w = tensor((k, 2, 3, 2), torch.float16)
        y = simt.conv_direct(x, w, y=tensor((1, k, 2, 2), torch.float16, "nchw"))
        assert_good(y, F.conv2d(x, w), reference.conv2d(x, w), torch.float16)
