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


def conv_operands(
    x, w, dtype, layouts=("nhwc",) * 3, residual=True, strided_bias=False, **settings
):
    p = simt.kernels.problem(x, w, **settings)
    depth = w[1] * w[2] * w[3]
    stride = 2 if strided_bias else 1
    return (
        tensor(x, dtype, layouts[0]),
        tensor(w, dtype, layouts[1], depth**-0.5),
        torch.randn(stride * p.K).to(dtype)[::stride],
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
    given = conv_operands(x, w, dtype, layouts, strided_bias=True, **settings)
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


# ---- conv_depthwise ----

HALF = (torch.float16, torch.bfloat16)
# Columns in constants (end of the name), then any width, then groups of 2 and 4, then odd channels.
DEPTHWISE = [
    ((2, 24, 9, 11), (24, 1, 3, 3), dict(padding=(1, 1), activation="relu"), "width3_stride1"),
    ((2, 16, 9, 12), (16, 1, 2, 3), dict(padding=(2, 0), stride=(1, 2)), "width3_stride2"),
    ((1, 264, 5, 7), (264, 1, 1, 5), dict(padding=(1, 3)), "width5_stride1"),
    ((1, 8, 11, 13), (8, 1, 7, 7), dict(padding=(3, 2, 1, 4), dilation=(2, 1)), "width7_stride1"),
    ((2, 24, 9, 14), (24, 1, 3, 3), dict(padding=(1, 3), dilation=(1, 3)), "groups1"),
    ((1, 16, 19, 21), (16, 1, 15, 17), dict(padding=(7, 8), stride=(2, 3)), "groups1"),
    ((2, 24, 7, 9), (24, 2, 3, 2), dict(groups=12, padding=(1, 1), stride=(2, 1)), "groups2"),
    ((2, 24, 7, 9), (24, 4, 3, 3), dict(groups=6, activation="sigmoid"), "groups4"),
    ((2, 13, 7, 9), (13, 1, 3, 3), dict(padding=(1, 1), stride=(1, 2)), "x1_groups1"),
]


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=dtype_id)
@pytest.mark.parametrize("case", DEPTHWISE, ids=lambda c: f"{c[0]} {c[1]}".replace(", ", ","))
def test_conv_depthwise(case, dtype):
    x, w, settings, name = case
    settings = dict(groups=x[1], **settings) if "groups" not in settings else settings
    given = conv_operands(x, w, dtype, **settings)
    y = simt.every_order(simt.conv_nhwc, "conv_depthwise", *given, kernel=name, **settings)
    double = [None if t is None else t.double() for t in given]
    truth = conv_reference(reference.conv2d, *double, **settings)
    assert_good(y, conv_reference(F.conv2d, *given, **settings), truth, dtype)


def test_conv_depthwise_slices_and_refusals():
    x, y = tensor((1, 40, 5, 7), torch.float16), tensor((1, 56, 5, 7), torch.float16)
    w = tensor((24, 1, 3, 3), torch.float16)
    out = simt.conv_nhwc("conv_depthwise", x[:, 8:32], w, y=y[:, 16:40], padding=(1, 1), groups=24)
    truth = reference.conv2d(x[:, 8:32], w, padding=1, groups=24)
    assert_good(out, F.conv2d(x[:, 8:32], w, padding=1, groups=24), truth, torch.float16)
    for sizes, words in (
        (((1, 24, 5, 5), (48, 1, 3, 3), 24), "differ in number"),
        (((1, 24, 5, 5), (24, 3, 3, 3), 8), "other than 1, 2 or 4"),
        (((1, 12, 5, 5), (12, 4, 3, 3), 3), "whole 16-byte chunks"),
        (((1, 8, 60, 60), (8, 1, 60, 60), 8), "larger than shared memory"),
    ):
        x, w = tensor(sizes[0], torch.float16), tensor(sizes[1], torch.float16)
        with pytest.raises(RuntimeError, match=words):
            simt.conv_nhwc("conv_depthwise", x, w, groups=sizes[2])


@pytest.mark.parametrize("case", [DEPTHWISE[0], DEPTHWISE[4], DEPTHWISE[7]], ids=lambda c: c[3])
def test_conv_depthwise_leaves_padding_out(case):
    x, w, settings, _ = case
    settings = dict(settings, padding=(2, 2), groups=x[1] // w[1], activation=None)
    x, w, _, _ = conv_operands(x, w, torch.float32, **settings)
    y = simt.conv_nhwc("conv_depthwise", x, w, **settings)
    w[:, 0, 0, 0], w[:, 0, 2, 2] = torch.inf, torch.inf  # only ever reach the padding's neighbours
    infinite = simt.conv_nhwc("conv_depthwise", x, w, **settings)
    corner = infinite[:, :, 0, -1]  # its taps (0, 0) and (2, 2) are outside
    assert corner.isfinite().all() and infinite.isinf().any()
    assert torch.equal(corner, y[:, :, 0, -1])
