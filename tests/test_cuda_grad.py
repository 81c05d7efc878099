"""The CUDA backend's convolution gradients in the emulator, against float64.

Each runs in ascending, descending and random order of its fibers, which must agree to the bit; its
operands end or begin at a page that cannot be accessed (``grads.in_every_order``).
"""

import pytest
import torch
import torch.nn.functional as F
from emulator import grads, simt
from emulator.kernels import problem
from emulator.ops import emulated_cuda
from emulator.simt import DTYPES, NAMES, dtype_id, tensor

from fastconv.ops.sizes import ACTIVATIONS
from fastconv.testing.compare import assert_good


def torch_gradients(x, w, dy, padding=(0, 0), **settings):
    """(dx, dw) by torch; `padding` may be of four sides."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    top, left, bottom, right = padding if len(padding) == 4 else padding * 2
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), w, **settings)
    return torch.autograd.grad(y, (x, w), dy)


def operands(x, w, dtype, layouts=("nhwc",) * 3, **settings):
    """x, w and dy; small whole numbers in float64, so that the truth is exact."""
    p = problem(x, w, **settings)
    scale = (w[1] * w[2] * w[3]) ** -0.5
    sizes = zip((x, w, (p.N, p.K, p.P, p.Q)), layouts, (1.0, scale, 1.0), strict=True)
    made = [tensor(size, dtype, layout, scale) for size, layout, scale in sizes]
    return [(8 * t).round_() for t in made] if dtype == torch.float64 else made


def truth_and_torchs(x, w, dy, **settings):
    exact = torch_gradients(x.double(), w.double(), dy.double(), **settings)
    return zip(exact, torch_gradients(x, w, dy, **settings), strict=True)


def check(x, w, dy, input_kernel, weight_kernel, **settings):
    dtype = x.dtype
    (dx_true, dx_torch), (dw_true, dw_torch) = truth_and_torchs(x, w, dy, **settings)
    dx, log = grads.input_grad(dy, w, x.shape[2:], **settings)
    assert_good(dx, dx_torch, dx_true, dtype, name="dx")
    assert any(name.startswith(input_kernel) for name in log), log
    dw, log = grads.weight_grad(x, dy, w.shape[2:], **settings)
    assert_good(dw, dw_torch, dw_true, dtype, name="dw")
    assert any(name.startswith(weight_kernel) for name in log), log
    return log


# ---- add_parts ----

# One thread of a weight, with a part, four and 16 of them; 2, 4, 8, 16 and 32 threads, with few
# weights and with many, in the last over three rounds of loads. Weights end within a block in all
# but one.
PARTS = [
    (1, (3, 2, 3, 5)),
    (4, (9, 1, 1, 40)),
    (16, (600, 3, 3, 13)),
    (33, (300, 3, 3, 25)),
    (5, (7, 3, 2, 11)),
    (13, (5, 3, 3, 24)),
    (20, (30, 1, 1, 9)),
    (40, (64, 1, 1, 1)),
    (100, (11, 1, 1, 9)),
    (262, (35, 1, 1, 1)),
    (1100, (13, 1, 1, 1)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", ["nhwc", "nchw sliced"])
@pytest.mark.parametrize(("splits", "size"), PARTS, ids=str)
def test_add_parts(splits, size, layout, dtype):
    parts = torch.randn(splits, *size, dtype=torch.double)
    if dtype != torch.double:
        parts = parts.float()
    dw = simt.every_order(simt.add_parts, parts, layout, dtype, kernel=f"add_parts_{NAMES[dtype]}")
    truth = parts.double().sum(0).permute(0, 3, 1, 2)
    assert_good(dw, parts.sum(0).permute(0, 3, 1, 2).to(dtype), truth, dtype)


# ---- conv_direct ----

ALL = dict(stride=(2, 1), padding=(1, 2, 0, 3), dilation=(1, 2))
NHWC, NCHW = ("nhwc",) * 3, ("nchw",) * 3
# Odd channels, which the other kernels refuse.
DIRECT = [
    # Tiles: tails in both channels; groups; every layout; more than one split of the pixels.
    ((2, 21, 7, 9), (70, 21, 3, 2), ALL, ("nhwc", "nhwc", "nchw")),
    ((2, 67, 7, 5), (23, 67, 3, 2), ALL, ("nchw", "nchw", "nhwc")),
    ((1, 34, 5, 8), (42, 17, 3, 3), dict(groups=2, padding=(1, 1)), ("nhwc sliced",) * 3),
    ((1, 34, 5, 8), (42, 17, 3, 3), dict(groups=2, padding=(4, 3)), ("nchw sliced",) * 3),
    ((3, 21, 6, 11), (23, 21, 1, 1), dict(stride=(2, 3)), ("nchw", "nhwc", "nhwc")),
    ((2, 21, 23, 31), (23, 21, 2, 1), {}, NHWC),
    # A warp a weight: groups of few channels; few of one; phases without a tap.
    ((2, 12, 9, 7), (24, 1, 3, 2), dict(groups=12, **ALL), ("nhwc", "nchw", "nhwc")),
    ((2, 6, 8, 11), (9, 2, 2, 3), dict(groups=3, **ALL), NCHW),
    ((2, 7, 35, 37), (5, 7, 3, 1), dict(stride=(2, 1)), ("nhwc sliced", "nhwc", "nchw sliced")),
    ((1, 5, 11, 14), (9, 5, 1, 2), dict(stride=(3, 4)), NHWC),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", DIRECT, ids=lambda c: f"{c[0]} {c[1]}".replace(", ", ","))
def test_direct(case, dtype):
    x, w, settings, layouts = case
    given = operands(x, w, dtype, layouts, **settings)
    groups = settings.get("groups", 1)
    narrow = "_narrow" if w[1] * w[0] // groups < 256 else ""
    name = f"conv_direct_weight_grad{narrow}_{NAMES[dtype]}"
    check(*given, "conv_direct", name, **settings)


@pytest.mark.parametrize("w", [(21, 17, 3, 2), (5, 6, 3, 2)], ids=["tile", "narrow"])
def test_direct_leaves_padding_out(w):
    """An infinite weight or gradient is never multiplied by the zeros of padding."""
    x, w, dy = (t.abs() + 1 for t in operands((1, w[1], 5, 7), w, torch.float64))
    w[0, 2, 0, 0] = torch.inf
    dx, _ = grads.input_grad(dy, w, (5, 7))
    infinite = torch.zeros_like(dx, dtype=torch.bool)
    infinite[0, 2, :3, :6] = True  # of the size of dy
    assert torch.equal(dx.isinf(), infinite) and not dx.isnan().any()
    dy = tensor((1, w.shape[0], 7, 10), torch.float64).abs()
    dy[0, 3, 0, 1] = torch.inf  # reads x through the last tap alone
    dw, _ = grads.weight_grad(x, dy, w.shape[2:], padding=(2, 2))
    infinite = torch.zeros_like(dw, dtype=torch.bool)
    infinite[3, :, 2, 1] = True
    assert torch.equal(dw.isinf(), infinite) and not dw.isnan().any()


# Of the last two, channels and pixels are whole chunks of 16 bytes; more than one split of pixels.
BIAS = [(2, 37, 5, 7), (3, 1, 9, 3), (2, 11, 23, 31), (2, 72, 5, 8), (3, 8, 24, 31)]
WHOLE = BIAS[3:]


def incoming(size, dtype, layout):
    """Random, of whole numbers in float64, whose sums are exact."""
    t = tensor((1, size[1], 1, 1) if layout == "expanded" else size, dtype, layout)
    if dtype == torch.float64:
        t.mul_(8).round_()
    return t.expand(size)


def assert_reads(kernel, name, size, dense):
    """The kernel reads 16 bytes at a time where it can; a slice may be as well aligned."""
    assert kernel in (name, f"{name}_x16")
    if dense or size not in WHOLE:
        assert kernel.endswith("_x16") == (size in WHOLE)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", ["nhwc", "nchw", "nhwc sliced", "nchw sliced", "expanded"])
@pytest.mark.parametrize("size", BIAS, ids=str)
def test_bias_grad(size, layout, dtype):
    dy = incoming(size, dtype, layout)
    db, log = grads.bias_grad(dy)
    assert_reads(log[0], f"conv_bias_grad_{NAMES[dtype]}", size, layout in ("nhwc", "nchw"))
    assert_good(db, dy.sum((0, 2, 3)), dy.double().sum((0, 2, 3)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(
    "layouts",
    ["nhwc,nhwc", "nchw,nchw", "nhwc,nchw", "nchw,nhwc", "nhwc sliced,nhwc", "nhwc,nhwc sliced"]
    + ["nchw,nchw sliced", "expanded,nchw"],
)
@pytest.mark.parametrize("size", BIAS, ids=str)
def test_activation_bias_grad(size, layouts, dtype):
    """dz exactly as the activation's gradient alone makes it, and the sum of what was stored."""
    first, second = layouts.split(",")
    dy, y = incoming(size, dtype, first), incoming(size, dtype, second)
    for activation, code in ACTIVATIONS.items():
        dz, db, log = grads.activation_bias_grad(dy, y, activation)
        with emulated_cuda():
            alone = torch.ops.fastconv_emulated.activation_grad_raw(dy, y, code)
        assert torch.equal(dz, alone) and dz.stride() == alone.stride()
        assert_reads(log[0], f"activation_bias_grad_{NAMES[dtype]}", size, first == second)
        assert len(log) == 2
        assert_good(db, dz.sum((0, 2, 3)), dz.double().sum((0, 2, 3)), dtype)


def test_activation_bias_grad_of_what_is_not_finite():
    """What the mask drops reaches no sum; NaN as the output passes dy."""
    dy, y = (tensor((2, 16, 5, 8), torch.float32).abs() + 1 for _ in range(2))
    dy[0, 3, 1, 2], y[0, 3, 1, 2] = torch.nan, -1.0
    dy[1, 5, 4, 7], y[1, 5, 4, 7] = -torch.inf, 0.0
    dy[0, 6, 0, 0], y[1, 7, 0, 0] = torch.inf, torch.nan
    for layout in (torch.channels_last, torch.contiguous_format):
        given = (t.contiguous(memory_format=layout) for t in (dy, y))
        dz, db, _ = grads.activation_bias_grad(*given, "relu")
        assert dz[1, 7, 0, 0] == dy[1, 7, 0, 0] and db[6] == torch.inf
        assert db.isfinite().sum() == 15


SPLITTING = (86, 2, 100 << 10)  # a GPU for which the planner splits the pixels


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("w", [(40, 24, 3, 2), (16, 24, 1, 1), (24, 1, 3, 3), (11, 5, 3, 2)])
def test_weight_bias_grad(w, activation, dtype):
    """Kernels on tensor cores sum dy as they read it; elsewhere one pass masks and sums it."""
    settings = dict(stride=(2, 1), padding=(1, 0), groups=24 if w[1] == 1 else 1)
    x, weight, dy = operands((2, w[1] * settings["groups"], 33, 29), w, dtype, **settings)
    y = incoming(dy.shape, dtype, "nhwc")
    with emulated_cuda():
        dz = torch.ops.fastconv_emulated.activation_grad_raw(dy, y, ACTIVATIONS[activation])
    dw, db, log = grads.weight_bias_grad(
        x, dy, None if activation is None else y, w[2:], activation, gpu=SPLITTING, **settings
    )
    passes = [name for name in log if "bias_grad" in name or name.startswith("activation_grad")]
    summed = activation is None and dtype != torch.float64 and w in ((40, 24, 3, 2), (16, 24, 1, 1))
    name = "conv_bias_grad" if activation is None else "activation_bias_grad"
    assert len(passes) == (not summed) and all(each.startswith(name) for each in passes)
    _, (truth, theirs) = truth_and_torchs(x, weight, dz, **settings)
    assert_good(dw, theirs, truth, dtype, name="dw")
    assert_good(db, dz.sum((0, 2, 3)), dz.double().sum((0, 2, 3)), dtype, name="db")


# Channels in and out, dtype and kernel of the weight gradient.
@pytest.mark.parametrize(
    "channels, dtype, size, kernel",
    [
        ((3, 4), torch.float64, (3, 3), "conv_direct"),
        ((16, 8), torch.float16, (3, 3), "conv_implicit_gemm"),
        ((16, 8), torch.float32, (1, 1), "conv1x1"),
        ((3, 8), torch.bfloat16, (3, 3), "conv_stem"),
    ],
)
def test_an_empty_batch(channels, dtype, size, kernel):
    c, k = channels
    x, dy = torch.empty(0, c, 5, 7, dtype=dtype), torch.empty(0, k, 5, 7, dtype=dtype)
    same = dict(padding=(size[0] // 2, size[1] // 2))
    w = torch.ones(k, c, *size, dtype=dtype)
    assert grads.input_grad(dy, w, (5, 7), **same)[0].shape == x.shape
    dw, log = grads.weight_grad(x, dy, size, **same)
    assert (dw == 0).all() and log[0].startswith(kernel)
    both = grads.weight_bias_grad(x, dy, None, size, None, **same)[:2]
    assert all((grad == 0).all() for grad in both)
    assert (grads.bias_grad(dy)[0] == 0).all()


# ---- conv_depthwise ----

# End of the names of the kernels of the input and of the weight gradient.
DEPTHWISE = [
    ((2, 24, 9, 11), (24, 1, 3, 3), dict(padding=(1, 1)), "width3_stride1", "groups1"),
    ((2, 16, 9, 12), (16, 1, 2, 3), dict(padding=(2, 0), stride=(1, 2)), "groups1", "groups1"),
    ((1, 264, 5, 7), (264, 1, 1, 5), dict(padding=(1, 3)), "width5_stride1", "groups1"),
    (
        (1, 8, 12, 13),
        (8, 1, 7, 7),
        dict(padding=(3, 2), dilation=(2, 1)),
        "width7_stride1",
        "groups1",
    ),
    ((2, 24, 9, 14), (24, 1, 3, 3), dict(padding=(1, 3), dilation=(1, 3)), "groups1", "groups1"),
    ((1, 16, 19, 21), (16, 1, 15, 17), dict(padding=(7, 8), stride=(2, 3)), "groups1", "groups1"),
    # Phases without a tap; more than one part of the pixels.
    ((2, 8, 37, 41), (8, 1, 1, 2), dict(stride=(2, 3)), "groups1", "groups1"),
    ((1, 8, 47, 41), (8, 1, 3, 3), dict(padding=(1, 1)), "width3_stride1", "groups1"),
    (
        (2, 24, 7, 9),
        (24, 2, 3, 2),
        dict(groups=12, padding=(1, 1), stride=(2, 1)),
        "groups2",
        "groups2",
    ),
    ((2, 24, 7, 9), (24, 4, 3, 3), dict(groups=6), "groups4", "groups4"),
    ((2, 13, 7, 9), (13, 1, 3, 3), dict(padding=(1, 1), stride=(1, 2)), "x1_groups1", "x1_groups1"),
]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=dtype_id)
@pytest.mark.parametrize("case", DEPTHWISE, ids=lambda c: f"{c[0]} {c[1]}".replace(", ", ","))
def test_depthwise(case, dtype, layout):
    x, w, settings, input_kernel, weight_kernel = case
    settings = {"groups": x[1], **settings}
    given = operands(x, w, dtype, (layout,) * 3, **settings)
    (dx_true, dx_torch), (dw_true, dw_torch) = truth_and_torchs(*given, **settings)
    x, w, dy = given
    dx, log = grads.input_grad(dy, w, x.shape[2:], **settings)
    assert_good(dx, dx_torch, dx_true, dtype, name="dx")
    assert any(n.startswith("conv_depthwise") and n.endswith(input_kernel) for n in log), log
    dw, log = grads.weight_grad(x, dy, w.shape[2:], **settings)
    assert_good(dw, dw_torch, dw_true, dtype, name="dw")
    names = [n for n in log if n.startswith("conv_depthwise_weight_grad")]
    assert len(names) == 1 and names[0].endswith(weight_kernel), log


def test_depthwise_leaves_padding_out():
    settings = dict(padding=(2, 2), groups=8)
    x, w, dy = operands((1, 8, 5, 7), (8, 1, 3, 3), torch.float32, **settings)
    dy[0, 3, 0, 0] = torch.inf  # reads x through the last tap alone
    dw, _ = grads.weight_grad(x.abs() + 1, dy, (3, 3), **settings)
    infinite = torch.zeros_like(dw, dtype=torch.bool)
    infinite[3, 0, 2, 2] = True
    assert torch.equal(dw.isinf(), infinite) and not dw.isnan().any()
    dy[0, 3, 0, 0] = 1.0
    w[5, 0, 0, 0] = torch.inf
    settings = dict(padding=(0, 0), groups=8)
    dx, _ = grads.input_grad(dy.abs() + 1, w, (9, 11), **settings)
    infinite = torch.zeros_like(dx, dtype=torch.bool)
    infinite[0, 5, :7, :9] = True  # of the size of dy
    assert torch.equal(dx.isinf(), infinite) and not dx.isnan().any()
