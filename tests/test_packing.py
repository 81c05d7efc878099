"""Packed weights kept between calls: the same results, noticed changes, bounded memory."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastconv
from fastconv import _C
from fastconv.nn import cache_size, clear_cache

LAYERS = {  # arguments of Conv2d by algorithm
    "winograd": (16, 24, 3, 1, 1),
    "winograd 5x5": (16, 20, 5, 1, 2),
    "direct": (5, 37, 3, 2, 1),
    "conv1x1": (19, 33, 1),
    "depthwise": (12, 12, 3, 1, 1, 1, 12),
    "grouped": (12, 18, 3, 1, "same", 1, 3),
}


def layer(name="winograd", dtype=torch.float32, **options):
    torch.manual_seed(0)
    return fastconv.nn.Conv2d(*LAYERS[name], dtype=dtype, **options).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_to_the_bit(name, dtype, isa):
    conv = layer(name, dtype, activation="relu")
    with torch.no_grad():
        for size in ((2, 9, 11), (1, 9, 11), (2, 12, 7)):
            x = torch.randn(size[0], conv.in_channels, *size[1:], dtype=dtype)
            residual = torch.randn_like(conv.train()(x))
            expected = conv(x, residual)
            conv.eval()
            for _ in range(2):
                assert torch.equal(conv(x, residual), expected)
    assert cache_size(conv) > 0


def test_only_in_eval_mode_without_gradients():
    conv, x = layer(), torch.randn(1, 16, 9, 11)
    conv(x)
    assert cache_size(conv) == 0  # its weight wants a gradient
    with torch.no_grad():
        conv.train()(x)
        assert cache_size(conv) == 0
        conv.eval()(x)
        assert cache_size(conv) > 0
        conv.requires_grad_(False)
    x.requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None


CHANGES = {
    "in place": lambda conv: conv.weight.mul_(-2),
    "optimizer": lambda conv: torch.optim.SGD([conv.weight], 0.1).step(),
    "load_state_dict": lambda conv: conv.load_state_dict(
        {k: v + 1 for k, v in conv.state_dict().items()}
    ),
    "another parameter": lambda conv: setattr(
        conv, "weight", torch.nn.Parameter(conv.weight.detach().flip(0))
    ),
    "data": lambda conv: setattr(conv.weight, "data", conv.weight.data.flip(1)),
    "data, cleared": lambda conv: (conv.weight.data.mul_(3), clear_cache(conv)),
    "to": lambda conv: conv.to(torch.float64).to(torch.float32),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_noticed(change):
    conv, x = layer(), torch.randn(1, 16, 9, 11)
    conv.weight.grad = torch.ones_like(conv.weight)
    with torch.no_grad():
        conv(x)
        CHANGES[change](conv)
        fresh = fastconv.conv2d(x, conv.weight, conv.bias, padding=1)
        assert torch.equal(conv(x), fresh)


def kept(conv, x, residual=None):
    """What the layer's call past the dispatcher answers: an output, a problem's name, or None."""
    return _C.eager_kept_conv2d(conv.__dict__, x, residual)


SETTINGS = {"padding": (0, 1), "stride": (2, 2), "dilation": (1, 2), "padding_mode": "circular"}


@torch.no_grad()
def test_a_call_is_made_by_what_is_kept_of_its_problem_and_no_other():
    conv, x = layer(), torch.randn(1, 16, 12, 13)  # one tile for fresh and kept weights
    problem = kept(conv, x)
    assert type(problem) is bytes
    y = conv(x)
    assert torch.equal(kept(conv, x), y) and torch.equal(kept(conv, x, -y), y - y)
    conv.activation = "relu"
    assert torch.equal(kept(conv, x), y.relu())
    conv.activation = None
    for other in (x[..., :10].contiguous(), x[..., :10], x.to(memory_format=torch.channels_last)):
        assert type(kept(conv, other)) is bytes and kept(conv, other) != problem
        assert torch.equal(conv(other), fastconv.conv2d(other, conv.weight, conv.bias, padding=1))
        assert torch.is_tensor(kept(conv, other))
    for name, value in SETTINGS.items():
        before = getattr(conv, name)
        setattr(conv, name, value)
        assert kept(conv, x) == problem, name
        assert torch.equal(conv(x), conv._conv_forward(x, conv.weight, conv.bias)), name
        setattr(conv, name, before)
        assert torch.equal(conv(x), y)
    conv.weight.add_(1)
    assert kept(conv, x) == problem


@torch.no_grad()
def test_what_a_call_by_kept_weights_leaves_to_the_op(monkeypatch):
    conv, x = layer(), torch.randn(1, 16, 9, 11)
    conv(x)
    none = [x[0], x.double(), x[:, :8], x.to("meta"), torch.nn.Parameter(x)[:0], x.numpy(), None]
    for other in none:
        assert not torch.is_tensor(kept(conv, other))
    assert kept(conv, x, torch.zeros(1, 24, 9, 12)) is None
    with pytest.raises(RuntimeError, match="residual"):
        conv(x, torch.zeros(1, 24, 9, 12))
    with torch.enable_grad():
        assert kept(conv, x) is None
    torch.nn.utils.parametrizations.weight_norm(conv)
    assert kept(conv, x) is None
    assert torch.equal(conv(x), fastconv.conv2d(x, conv.weight, conv.bias, padding=1))
    full = layer()
    monkeypatch.setenv("FASTCONV_CACHE", "1")  # its weights take 5 MB
    big = torch.randn(1, 16, 9, 11)
    full.weight.data = torch.randn(2400, 16, 3, 3)
    full.bias.data = torch.randn(2400)
    expected = fastconv.conv2d(big, full.weight, full.bias, padding=1)
    assert torch.equal(full(big), expected) and torch.equal(full(big), expected)
    assert cache_size(full) == 0 and kept(full, big) is None


@pytest.mark.parametrize("drop", ["train", "eval", "double", "load_state_dict"])
def test_dropped(drop):
    conv = layer()
    with torch.no_grad():
        conv(torch.randn(1, 16, 9, 11))
        assert cache_size(conv) > 0
        argument = (conv.state_dict(),) if drop == "load_state_dict" else ()
        getattr(conv, drop)(*argument)
    assert cache_size(conv) == 0


def test_copies_carry_none():
    conv, x = layer(), torch.randn(1, 16, 9, 11)
    with torch.no_grad():
        y = conv(x)
        saved = io.BytesIO()
        torch.save(conv, saved)
        saved.seek(0)
        for twin in (
            copy.deepcopy(conv),
            pickle.loads(pickle.dumps(conv)),
            torch.load(saved, weights_only=False),
            fastconv.convert(conv),
        ):
            assert cache_size(twin) == 0
            assert torch.equal(twin(x), y)
            assert cache_size(twin) > 0


def test_converted_layers_keep_theirs():
    model = fastconv.convert(torch.nn.Sequential(torch.nn.Conv2d(16, 20, 3))).eval()
    with torch.no_grad():
        model(torch.randn(1, 16, 9, 11))
    assert cache_size(model) > 0


def test_problems_that_agree_share_their_weights(monkeypatch):
    conv = layer()
    with torch.no_grad():
        conv(torch.randn(1, 16, 9, 11))
        size = cache_size(conv)
        for width in range(12, 90):
            conv(torch.randn(1, 16, 9, width))
        assert cache_size(conv) == size and cache_size() >= size
        monkeypatch.setenv("FASTCONV_CACHE", "0")
        clear_cache(conv)
        conv(torch.randn(1, 16, 9, 11))
        assert cache_size(conv) == 0
        monkeypatch.setenv("FASTCONV_CACHE", "much")
        with pytest.raises(ValueError, match="megabytes, got 'much'"):
            conv(torch.randn(1, 16, 9, 11))


def test_weights_of_another_problem_are_refused():
    conv, other = layer(), layer("direct")
    window = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    x = torch.randn(1, 16, 9, 11)
    packed = torch.ops.fastconv.conv2d_pack(x[:, : other.in_channels], other.weight, *window)
    with pytest.raises(RuntimeError, match="another problem"):
        torch.ops.fastconv.conv2d_packed(x, conv.weight, packed, None, None, 9, 11, 0)
    own = torch.ops.fastconv.conv2d_pack(x, conv.weight, *window)
    broken = own.clone()
    broken[10:19] = float("nan")  # the window
    for packed, width in ((own, 12), (broken, 11), (own[:32], 11)):
        with pytest.raises(RuntimeError, match="another problem"):
            torch.ops.fastconv.conv2d_packed(x, conv.weight, packed, None, None, 9, width, 0)


def test_opcheck():
    conv, x = layer().requires_grad_(False), torch.randn(1, 16, 9, 11)
    window = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    packed = torch.ops.fastconv.conv2d_pack(x, conv.weight, *window)
    residual = torch.randn(1, 24, 9, 11)
    arguments = (x, conv.weight, packed, conv.bias, residual, 9, 11, 1)
    torch.library.opcheck(torch.ops.fastconv.conv2d_packed.default, arguments)


def test_eight_threads_share_a_layer():
    conv = layer()
    inputs = [torch.randn(1, 16, 9 + i % 3, 11) for i in range(40)]
    with torch.no_grad():
        conv.train()
        expected = [conv(x) for x in inputs]
        conv.eval()

    def run(x):
        with torch.no_grad():
            return conv(x)

    with ThreadPoolExecutor(8) as pool:
        for mine, true in zip(pool.map(run, inputs), expected, strict=True):
            assert torch.equal(mine, true)


def test_weights_that_another_thread_drops_at_once(monkeypatch):
    conv, x = layer().requires_grad_(False), torch.randn(1, 16, 9, 11)
    expected = conv(x)
    clear_cache(conv)
    keep = fastconv.packing._keep
    monkeypatch.setattr(fastconv.packing, "_keep", lambda *a: (keep(*a), clear_cache(conv))[0])
    assert torch.equal(conv(x), expected)


def test_transforms_take_the_op():
    conv, x = layer().requires_grad_(False), torch.randn(3, 16, 9, 11)
    expected = conv.train()(x)
    conv.eval()(x)
    torch.testing.assert_close(torch.vmap(lambda x: conv(x[None])[0])(x), expected)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    program = torch.export.export(conv, (x,)).module()
    assert "packed" not in str(program.graph)
    torch.testing.assert_close(program(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(conv(x), expected)
        assert torch.equal(layer()(x), expected)  # made here: no version to tell a change by
