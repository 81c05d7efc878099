"""The convolution of few input channels under the emulator, against float64.

Each case runs in every order of its fibers, on poisoned and guarded buffers (``simt.every_order``).
"""

import emulator
import pytest
import torch
from emulator import grads, kernels, simt
from test_cuda_grad import operands, torch_gradients
from test_cuda_kernels import round_tf32
from test_cuda_simt import conv_operands, conv_reference

from fastconv.testing import reference
from fastconv.testing.compare import assert_good, relative_rms

# Tiles are 8 x 16 pixels; name ends with the channels of a block in half precision.
STEMS = [
    # ResNet's and GoogLeNet's; AlexNet's; LeNet's, whose channels are not whole chunks.
    ((1, 3, 23, 37), (64, 3, 7, 7), dict(stride=(2, 2), padding=(3, 3), activation="relu"), 64),
    ((1, 3, 47, 71), (40, 3, 11, 11), dict(stride=(4, 4), padding=(2, 2)), 32),
    ((2, 1, 13, 21), (6, 1, 5, 5), dict(activation="sigmoid"), 64),
    # An odd stride and odd channels: pixels begin at odd elements. VGG's.
    ((2, 3, 10, 19), (72, 3, 3, 3), dict(padding=(1, 1)), 64),
    ((1, 3, 9, 40), (13, 3, 2, 4), dict(stride=(1, 3), padding=(0, 5, 2, 1)), 64),
    ((2, 4, 9, 12), (24, 4, 3, 5), dict(stride=(1, 3), padding=(4, 3)), 64),
    ((1, 2, 11, 23), (16, 2, 4, 3), dict(stride=(2, 1), padding=(1, 0, 2, 3)), 64),
    ((3, 3, 5, 7), (8, 3, 1, 1), dict(stride=(2, 1)), 64),
]


def stem_id(case):
    return f"{case[0]} {case[1]}".replace(", ", ",")


@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("case", STEMS, ids=stem_id)
def test_conv_stem(case, math):
    x, w, settings, channels = case
    dtype = kernels.DTYPES[math]
    given = conv_operands(x, w, dtype, **settings)
    kernel = f"conv_stem_{math}_8x16x{channels if dtype.itemsize == 2 else 32}"
    y = simt.every_order(
        simt.conv_nhwc,
        "conv_stem",
        *given,
        kernel=kernel,
        arguments=(kernels.MATHS.index(math), 3),
        **settings,
    )
    rounded = given
    if math == "tf32":
        rounded = (round_tf32(given[0]), round_tf32(given[1]), *given[2:])
        exact = conv_reference(reference.conv2d, *(t.double() for t in rounded), **settings)
        assert relative_rms(y, exact) < 2e-5
    truth = conv_reference(reference.conv2d, *(t.double() for t in given), **settings)
    torchs = conv_reference(torch.nn.functional.conv2d, *rounded, **settings)
    assert_good(y, torchs, truth, dtype)


@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("size", [(8, 3, 7, 5), (9, 1, 3, 3), (12, 3, 2, 3)], ids=str)
def test_conv_stem_of_what_is_not_finite(size, math):
    """What a filter row reads past its end does not count; Inf stays Inf, NaN stays NaN."""
    dtype = kernels.DTYPES[math]
    x, _, _, _ = conv_operands((2, size[1], 17, 19), size, dtype)
    w = torch.ones(size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, 3], x[0, 0, 5, 8], x[1, 0, 16, 18] = torch.inf, torch.nan, -torch.inf
    y = simt.conv_nhwc(
        "conv_stem", x, w, stride=(1, 2), padding=(1, 2), arguments=(kernels.MATHS.index(math), 1)
    )
    truth = reference.conv2d(x, w, stride=(1, 2), padding=(1, 2))
    assert torch.equal(y.isnan(), truth.isnan()) and torch.equal(y.isinf(), truth.isinf())
    assert truth.isinf().any() and truth.isnan().any() and truth.isfinite().any()


@pytest.mark.parametrize("math", kernels.MATHS)
def test_conv_stem_slices(math):
    """Input, residual and output are slices of channels."""
    dtype = kernels.DTYPES[math]
    x = simt.tensor((1, 11, 12, 19), dtype)[:, 4:7]
    w = simt.tensor((24, 3, 3, 3), dtype, scale=0.2)
    residual = simt.tensor((1, 40, 6, 19), dtype)[:, 8:32]
    y = simt.tensor((1, 48, 6, 19), dtype)[:, 16:40]
    settings = dict(stride=(2, 1), padding=(1, 1))
    out = simt.conv_nhwc(
        "conv_stem", x, w, None, residual, y=y, arguments=(kernels.MATHS.index(math), 9), **settings
    )
    given = (x, w) if math != "tf32" else (round_tf32(x.contiguous()), round_tf32(w))
    truth = conv_reference(reference.conv2d, x, w, None, residual, **settings)
    torchs = conv_reference(torch.nn.functional.conv2d, *given, None, residual, **settings)
    assert_good(out, torchs, truth, dtype)


def test_conv_stem_refusals():
    for x, w, settings, words in (
        ((1, 6, 9, 9), (8, 3, 3, 3), dict(groups=2), "groups"),
        ((1, 5, 9, 9), (8, 5, 3, 3), {}, "more than 4 input channels"),
        ((1, 3, 9, 9), (8, 3, 3, 3), dict(dilation=(1, 2)), "dilation"),
        ((1, 3, 60, 60), (8, 3, 31, 31), {}, "larger than shared memory"),
    ):
        x, w = simt.tensor(x, torch.float16), simt.tensor(w, torch.float16)
        with pytest.raises(RuntimeError, match=words):
            simt.conv_nhwc("conv_stem", x, w, arguments=(0, 1), **settings)


@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("case", STEMS[:2], ids=stem_id)
def test_conv_stem_bank_conflicts(case, math):
    """A few per cent at most: fragments, weights and slabs have none, the patch's edges some."""
    x, w, settings, _ = case
    x, w, _, _ = conv_operands(x, w, kernels.DTYPES[math], **settings)
    emulator.take_bank_count()
    simt.conv_nhwc(
        "conv_stem",
        *(x, w),
        arguments=(kernels.MATHS.index(math), 1),
        count_banks=True,
        stride=settings["stride"],
        padding=settings["padding"],
    )
    phases, cycles = emulator.take_bank_count()
    print(phases, cycles / phases)
    assert cycles < 1.1 * phases


@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("case", STEMS, ids=stem_id)
def test_conv_stem_weight_grad(case, math):
    """One block for each multiprocessor and less tiles than blocks; then one block for all."""
    x, w, settings, _ = case
    settings = {k: v for k, v in settings.items() if k != "activation"}
    dtype, tf32 = kernels.DTYPES[math], math == "tf32"
    x, w, dy = operands(x, w, dtype, **settings)
    name = f"conv_stem_weight_grad_{math}_64x{32 if w[0].numel() <= 32 else 160}"
    given = [round_tf32(t) for t in (x, w, dy)] if tf32 else (x, w, dy)
    truth = torch_gradients(*(t.double() for t in given), **settings)[1]
    for gpu in ((90, 4, 228 << 10), (86, 1, 100 << 10)):
        dw, log = grads.weight_grad(x, dy, w.shape[2:], tf32=tf32, gpu=gpu, **settings)
        assert name in log
        if tf32:
            assert relative_rms(dw, truth) < 2e-5
        else:
            assert_good(dw, torch_gradients(x, w, dy, **settings)[1], truth, dtype)


@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("case", STEMS, ids=stem_id)
def test_conv_stem_weight_bias_grad(case, math):
    """dy is masked and summed as it is read: no other kernel but those that add parts."""
    x, w, settings, _ = case
    settings = {k: v for k, v in settings.items() if k != "activation"}
    dtype, tf32 = kernels.DTYPES[math], math == "tf32"
    x, w, dy = operands(x, w, dtype, **settings)
    y = simt.tensor(dy.shape, dtype)
    derivatives = {None: lambda y: 1, "relu": lambda y: y > 0, "sigmoid": lambda y: y * (1 - y)}
    for activation, derivative in derivatives.items():
        dz = dy * derivative(y)
        given = [round_tf32(t) for t in (x, w, dz)] if tf32 else (x, w, dz)
        truth = torch_gradients(*(t.double() for t in given), **settings)[1]
        for gpu in ((90, 4, 228 << 10), (86, 1, 100 << 10)):
            dw, db, log = grads.weight_bias_grad(
                x, dy, y if activation else None, w.shape[2:], activation, tf32, gpu, **settings
            )
            assert len(log) == 3 and log[0].startswith(f"conv_stem_weight_grad_{math}")
            assert log[1:] == [f"add_parts_{simt.NAMES[dtype]}"] * 2
            if tf32:
                assert relative_rms(dw, truth) < 2e-5
            else:
                assert_good(dw, torch_gradients(x, w, dz, **settings)[1], truth, dtype)
            assert_good(db, dz.sum((0, 2, 3)), dz.double().sum((0, 2, 3)), dtype, name="db")


@pytest.mark.parametrize("math", kernels.MATHS)
def test_conv_stem_weight_bias_grad_of_an_empty_batch(math):
    dtype = kernels.DTYPES[math]
    x, dy = simt.tensor((0, 3, 9, 8), dtype), simt.tensor((0, 40, 7, 6), dtype)
    dw, db, log = grads.weight_bias_grad(x, dy, dy, (3, 3), "relu", math == "tf32")
    assert log[0].startswith("conv_stem_weight_grad") and (dw == 0).all() and (db == 0).all()


@pytest.mark.parametrize("math", kernels.MATHS)
def test_conv_stem_weight_bias_grad_drops_what_is_not_finite(math):
    """Also where float32's sums are made again; what the mask leaves stays as it is."""
    x, w, dy = operands((2, 3, 17, 25), (16, 3, 3, 3), kernels.DTYPES[math], stride=(2, 2))
    x, dy = x.abs() + 1, dy.abs() + 1
    y = torch.ones_like(dy)
    dy[0, 1, 0, 3], dy[0, 2, 4, 5], dy[1, 3, 0, 0] = torch.inf, torch.nan, -torch.inf
    y[0, 1, 0, 3], y[0, 2, 4, 5] = -1.0, 0.0
    dw, db, _ = grads.weight_bias_grad(x, dy, y, (3, 3), "relu", math == "tf32", stride=(2, 2))
    dz = torch.where(y > 0, dy, 0.0)
    truth = torch_gradients(x.double(), w.double(), dz.double(), stride=(2, 2))[1]
    assert torch.equal(dw.isfinite(), truth.isfinite()) and not dw.isnan().any()
    assert db[3] == -torch.inf and db.isfinite().sum() == 15
    x[0, 1, 4, 4] = torch.inf  # its products with tf32's small terms are NaN
    dw, _, _ = grads.weight_bias_grad(x, dy, y, (3, 3), "relu", math == "tf32", stride=(2, 2))
    truth = torch_gradients(x.double(), w.double(), dz.double(), stride=(2, 2))[1]
    assert torch.equal(dw.isnan(), truth.isnan())
    assert torch.equal(dw[truth.isinf()].double(), truth[truth.isinf()])


@pytest.mark.parametrize("math", kernels.MATHS)
def test_conv_stem_weight_grad_of_what_is_not_finite(math):
    """A tile's pixels past the output are no zeros to multiply; Inf stays Inf, NaN stays NaN."""
    x, w, dy = operands((2, 3, 17, 25), (9, 3, 3, 3), kernels.DTYPES[math], stride=(2, 2))
    x, dy = x.abs() + 1, dy.abs() + 1
    dy[0, 1, 0, 3], dy[0, 2, 4, 5], dy[1, 3, 0, 0] = torch.inf, torch.nan, -torch.inf
    x[0, 1, 16, 24], x[1, 2, 15, 24] = (
        torch.inf,
        torch.inf,
    )  # a pixel past the output reads them too
    dw, _ = grads.weight_grad(x, dy, (3, 3), tf32=math == "tf32", stride=(2, 2))
    truth = torch_gradients(x.double(), w.double(), dy.double(), stride=(2, 2))[1]
    assert torch.equal(dw.isnan(), truth.isnan())
    assert torch.equal(dw[truth.isinf()].double(), truth[truth.isinf()])
    assert truth.isinf().any() and truth.isnan().any() and truth.isfinite().any()


def test_conv_stem_weight_grad_slices():
    x = simt.tensor((1, 11, 12, 19), torch.float16)[:, 4:7]
    dy = simt.tensor((1, 48, 5, 17), torch.float16)[:, 16:40]
    w = simt.tensor((24, 3, 3, 3), torch.float16)
    dw, log = grads.weight_grad(x, dy, (3, 3), stride=(2, 1))
    assert_good(
        dw,
        torch_gradients(x, w, dy, stride=(2, 1))[1],
        torch_gradients(x.double(), w.double(), dy.double(), stride=(2, 1))[1],
        torch.float16,
    )
    assert [name.startswith(("conv_stem_weight_grad", "add_parts")) for name in log] == [True] * 2
    y = simt.tensor((1, 57, 5, 17), torch.float16)[:, 5:29]  # not aligned
    dw, db, log = grads.weight_bias_grad(x, dy, y, (3, 3), "relu", stride=(2, 1))
    dz = dy * (y > 0)
    truth = torch_gradients(x.double(), w.double(), dz.double(), stride=(2, 1))[1]
    assert_good(dw, torch_gradients(x, w, dz, stride=(2, 1))[1], truth, torch.float16)
    assert_good(db, dz.sum((0, 2, 3)), dz.double().sum((0, 2, 3)), torch.float16)
    assert log[0].startswith("conv_stem_weight_grad")
    # Planes of pixels would have to be copied: one pass makes dz and its sums.
    dy, y = dy.contiguous(), y.contiguous()
    log = grads.weight_bias_grad(x, dy, y, (3, 3), "relu", stride=(2, 1))[-1]
    assert log[0] == "activation_bias_grad_f16"
