"""fastconv.nn against torch.nn: signatures, repr, state_dict, results, tools that swap weights."""

import copy
import inspect
import pickle

import pytest
import torch
from torch.nn.utils import parametrizations, prune

import fastconv.nn as fnn
from fastconv.testing import torch_layers

NAMES = ("Conv2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "Linear")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def pair(name, *arguments, **options):
    """Ours and torch's layer with the same weights, in float64."""
    ours = getattr(fnn, name)(*arguments, **options).double()
    theirs = getattr(torch.nn, name)(*arguments, **options).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_torchs(name):
    ours = inspect.signature(getattr(fnn, name)).parameters
    theirs = inspect.signature(getattr(torch.nn, name)).parameters
    assert [key for key in ours if key != "activation"] == list(theirs)
    assert all(ours[key].default == theirs[key].default for key in theirs)
    assert all(ours[key].kind == theirs[key].kind for key in theirs)
    assert issubclass(getattr(fnn, name), getattr(torch.nn, name))


CONVS = [
    ((4, 6, 3), {}),
    ((4, 6, (3, 5)), {"padding": "same"}),
    ((4, 6, (2, 4)), {"padding": "same", "dilation": (2, 1)}),
    ((4, 6, (3, 2)), {"padding": "valid", "stride": 2}),
    ((4, 6, (3, 5), (2, 1), (1, 2)), {"groups": 2, "bias": False}),
    ((4, 4, 3, 1, 2, 2, 4), {}),
    *(
        ((4, 6, (3, 5)), {"padding": padding, "padding_mode": mode})
        for padding in ((2, 1), "same")
        for mode in ("reflect", "replicate", "circular")
    ),
    ((4, 6, (2, 4)), {"padding": "same", "padding_mode": "reflect"}),
]


@pytest.mark.parametrize(("arguments", "options"), CONVS)
@pytest.mark.parametrize("shape", [(2, 4, 9, 11), (4, 9, 11)], ids=["batch", "one"])
def test_conv2d_equals_torchs(arguments, options, shape):
    ours, theirs = pair("Conv2d", *arguments, **options)
    assert repr(ours) == repr(theirs)
    x = image(*shape)
    mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(mine), theirs(reference)
    close(y, expected)
    y.cos().sum().backward()
    expected.cos().sum().backward()
    close(mine.grad, reference.grad)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(a.grad, b.grad)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_conv2d_residual_and_activation(activation, with_residual):
    ours = fnn.Conv2d(3, 5, (3, 2), padding=(1, 0), activation=activation).double()
    twin = torch_layers.Conv2d(3, 5, (3, 2), padding=(1, 0), activation=activation).double()
    twin.load_state_dict(ours.state_dict())
    x = image(2, 3, 7, 6)
    residual = image(2, 5, 7, 5) if with_residual else None
    close(ours(x, residual), twin(x, residual))
    assert ("activation=" in repr(ours)) == (activation is not None)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("MaxPool2d", ((3, 2),), {}),
        ("MaxPool2d", (3, (1, 2), (1, 0)), {"dilation": (1, 2), "ceil_mode": True}),
        ("MaxPool2d", (2,), {"ceil_mode": True}),
        ("MaxPool2d", ((2, 3), 2), {"return_indices": True}),
        ("AvgPool2d", ((3, 2),), {}),
        ("AvgPool2d", (3, 2, 1), {"ceil_mode": True, "count_include_pad": False}),
        ("AvgPool2d", ((2, 3),), {"divisor_override": 5}),
        ("AdaptiveAvgPool2d", ((4, 3),), {}),
        ("AdaptiveAvgPool2d", ((None, 5),), {}),
        ("AdaptiveAvgPool2d", (2,), {}),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3, 9, 11), (3, 9, 11)], ids=["batch", "one"])
def test_pooling_equals_torchs(name, arguments, options, shape):
    ours, theirs = pair(name, *arguments, **options)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict() == {}
    x = image(*shape)
    y, expected = ours(x), theirs(x)
    if not options.get("return_indices"):
        y, expected = (y,), (expected,)
    for a, b in zip(y, expected, strict=True):
        assert a.dtype == b.dtype
        close(a, b)


def test_global_avg_pool_and_residual_add():
    x, shortcut = image(2, 3, 4, 5), image(2, 3, 4, 5)
    close(fnn.GlobalAvgPool2d()(x), x.mean((2, 3), keepdim=True))
    assert not list(fnn.GlobalAvgPool2d().parameters())
    close(fnn.ResidualAdd()(x, shortcut), x + shortcut)
    close(fnn.ResidualAdd("relu")(x, shortcut), (x + shortcut).relu())
    close(fnn.ResidualAdd("sigmoid")(x, shortcut), (x + shortcut).sigmoid())
    assert repr(fnn.ResidualAdd("relu")) == "ResidualAdd(activation=relu)"


@pytest.mark.parametrize(
    "layer",
    [
        fnn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", activation="relu"),
        fnn.MaxPool2d(2),
        fnn.AvgPool2d(2),
        fnn.AdaptiveAvgPool2d((None, 3)),
        fnn.GlobalAvgPool2d(),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_apart(layer, clone):
    other = clone(layer)
    assert type(other) is type(layer) and repr(other) == repr(layer)
    x = torch.randn(1, 3, 6, 8)
    assert torch.equal(other(x), layer(x))
    for a, b in zip(other.parameters(), layer.parameters(), strict=True):
        assert a is not b


@pytest.mark.parametrize(
    "dress",
    [
        lambda m: prune.l1_unstructured(m, "weight", amount=0.5),
        lambda m: prune.l1_unstructured(m, "bias", amount=0.5),
        lambda m: parametrizations.weight_norm(m),
        lambda m: parametrizations.spectral_norm(m),
        lambda m: torch.nn.utils.spectral_norm(m),
    ],
    ids=["prune weight", "prune bias", "weight_norm", "spectral_norm", "old spectral_norm"],
)
def test_reparametrised_weights_are_used(dress):
    ours, theirs = pair("Conv2d", 3, 5, (3, 2))
    torch.manual_seed(0)
    dress(ours)
    torch.manual_seed(0)
    dress(theirs)
    theirs.load_state_dict(ours.state_dict())
    x = image(2, 3, 7, 6)
    close(ours(x), theirs(x))
    with torch.no_grad():  # the weight is computed anew, not remembered
        for module in (ours, theirs):
            for parameter in module.parameters():
                parameter.mul_(0.5).add_(0.25)
    close(ours(x), theirs(x))


def test_functional_call_and_an_attribute_of_the_instance():
    conv = fnn.Conv2d(3, 5, (3, 2)).double()
    x = image(2, 3, 7, 6)
    other = {name: torch.randn_like(value) for name, value in conv.named_parameters()}
    expected = torch.nn.functional.conv2d(x, other["weight"], other["bias"])
    close(torch.func.functional_call(conv, other, x), expected)
    conv.__dict__.update(other)
    close(conv(x), expected)


def test_factory_arguments():
    conv = fnn.Conv2d(3, 5, 3, device="meta", dtype=torch.bfloat16)
    assert conv.weight.device.type == "meta" and conv.bias.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.Conv2d(3, 5, 3, activation="gelu"), "activation.*'gelu'"),
        (lambda: fnn.ResidualAdd("tanh"), "activation.*'tanh'"),
        (lambda: fnn.Conv2d(3, 5, 3, padding="full"), "full"),
        (lambda: fnn.Conv2d(3, 5, 3, stride=2, padding="same"), "same"),
        (lambda: fnn.Conv2d(3, 5, 3, groups=2), "in_channels"),
        (lambda: fnn.Conv2d(3, 5, 3, padding_mode="mirror"), "padding_mode"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_activation_is_keyword_only():
    with pytest.raises(TypeError):
        fnn.Conv2d(3, 5, 3, 1, 0, 1, 1, True, "zeros", None, None, "relu")
