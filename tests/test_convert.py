"""fastconv.convert: over the same parameters, the same results, and an untouched original."""

import copy
import functools
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastconv.nn as fnn
from fastconv.convert import convert


class Block(nn.Module):
    """Every layer that is replaced, nested, with batch norm and dropout."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (3, 5), padding="same", padding_mode="reflect")
        self.tail = nn.ModuleDict(
            {
                "norm": nn.BatchNorm2d(channels),
                "pool": nn.Sequential(nn.MaxPool2d((2, 3), 1), nn.AvgPool2d(2)),
                "drop": nn.Dropout(0.5),
            }
        )
        self.head = nn.AdaptiveAvgPool2d((3, None))
        self.absent = None
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("offset", torch.zeros(1), persistent=False)

    def forward(self, x):
        x = self.conv(x)
        for module in self.tail.values():
            x = module(x)
        return self.head(x) * self.scale + self.offset


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def snapshot(model):
    """What convert must not change: objects, classes, flags, hooks, children, attributes."""
    return [
        (
            name,
            id(m),
            type(m),
            {k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items()},
        )
        for name, m in model.named_modules(remove_duplicate=False)
    ]


def same(model, converted, *shape):
    results = []
    state = copy.deepcopy(model.state_dict())
    for m in (model, converted):
        model.load_state_dict(state)  # the running statistics are shared
        torch.manual_seed(4)
        x = image(*shape).requires_grad_()
        y = m(x)
        y = y if isinstance(y, tuple) else (y,)
        y[0].sin().sum().backward()
        results.append((y, x.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_nested_model(training):
    model = nn.Sequential(Block(), nn.ReLU(), Block()).train(training)
    before = snapshot(model)
    new, report = convert(model, return_report=True)
    assert snapshot(model) == before
    assert type(new) is nn.Sequential and type(new[0]) is Block
    assert [n for n, _ in new.named_modules()] == [n for n, _ in model.named_modules()]
    assert not {id(m) for m in new.modules()} & {id(m) for m in model.modules()}
    for a, b in zip(new.parameters(), model.parameters(), strict=True):
        assert a is b
    for a, b in zip(new.buffers(), model.buffers(), strict=True):
        assert a is b
    assert list(new.state_dict()) == list(model.state_dict())
    assert repr(new) == repr(model)
    kinds = {"conv": fnn.Conv2d, "tail.pool.0": fnn.MaxPool2d, "tail.pool.1": fnn.AvgPool2d}
    kinds["head"] = fnn.AdaptiveAvgPool2d
    for name, kind in kinds.items():
        assert type(new.get_submodule(f"2.{name}")) is kind
    assert {entry.name for entry in report.converted} == {f"{i}.{k}" for i in "02" for k in kinds}
    assert report.left == []
    same(model, new, 2, 4, 9, 11)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(3, 4, (2, 3)), fnn.Conv2d),
        (nn.MaxPool2d((2, 3), return_indices=True), fnn.MaxPool2d),
        (nn.AvgPool2d(3, divisor_override=2), fnn.AvgPool2d),
        (nn.AdaptiveAvgPool2d((None, 2)), fnn.AdaptiveAvgPool2d),
    ],
)
def test_a_root_that_is_a_layer(layer, kind):
    new, report = convert(layer, return_report=True)
    assert type(new) is kind and type(layer) is getattr(nn, kind.__name__)
    assert report.converted == [("", kind.__name__, "")]
    x = image(2, 3, 7, 8)
    torch.testing.assert_close(new(x), layer(x))
    assert type(convert(new)) is kind  # what is fastconv's stays so
    assert convert(new, return_report=True)[1].left == []


def test_each_training_flag_is_its_own():
    model = nn.Sequential(Block(), Block())
    model[0].eval()
    model[1].tail["drop"].eval()
    model[0].conv.train()
    new = convert(model)
    assert [m.training for m in new.modules()] == [m.training for m in model.modules()]
    new.train()
    assert not model[0].training and not model[0].tail["norm"].training
    new.eval()
    assert model[1].training


def test_a_shared_module_stays_shared():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    block = nn.Sequential(conv, nn.Tanh())
    model = nn.Sequential(block, conv, block)
    new, report = convert(model, return_report=True)
    assert new[0] is new[2] and new[0][0] is new[1] and new[1] is not conv
    assert [entry.name for entry in report.converted] == ["0.0"]
    same(model, new, 1, 3, 5, 7)


class Subclass(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def patched():
    conv = nn.Conv2d(3, 4, 3)
    conv.forward = lambda x: x
    return conv


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Subclass(3, 4, 3), "subclass of Conv2d"),
        (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), "parametrized"),
        (lambda: nn.LazyConv2d(4, 3), "lazy"),
        (lambda: nn.Conv2d(3, 4, 3, dtype=torch.complex64), "dtype torch.complex64"),
        (patched, "forward was replaced"),
        (lambda: nn.Conv1d(3, 4, 3), "no Conv1d"),
        (lambda: nn.Conv3d(3, 4, 3), "no Conv3d"),
        (lambda: nn.ConvTranspose2d(3, 4, 3), "no ConvTranspose2d"),
        (lambda: nn.LPPool2d(2, 3), "no LPPool2d"),
        (lambda: nn.AdaptiveMaxPool2d(2), "no AdaptiveMaxPool2d"),
        (lambda: nn.AvgPool1d(2), "no AvgPool1d"),
        (lambda: nn.MaxUnpool2d(2), "no MaxUnpool2d"),
        (lambda: nn.FractionalMaxPool2d(2, 2), "no FractionalMaxPool2d"),
        (lambda: torch.jit.script(nn.Conv2d(3, 4, 3)), "TorchScript"),
        (lambda: torch.compile(nn.Conv2d(3, 4, 3), backend="eager"), "compiled"),
    ],
)
def test_what_is_left_is_reported(make, reason):
    layer = make()
    model = nn.Sequential(nn.ReLU(), layer, nn.Bilinear(3, 3, 3), nn.BatchNorm2d(4))
    new, report = convert(model, return_report=True)
    assert type(new[1]) is type(layer)
    assert report.converted == []
    ((name, kind, why),) = report.left
    assert name == "1" and kind == type(layer).__name__ and reason in why
    assert f"left  1     {kind}" in str(report) and why in str(report)


@pytest.mark.parametrize("dress", ["parametrized", "pruned", "old spectral_norm", "subclass"])
def test_left_and_dressed_layers_still_compute(dress):
    conv = Subclass(3, 4, 3) if dress == "subclass" else nn.Conv2d(3, 4, 3)
    if dress == "parametrized":
        parametrizations.weight_norm(conv)
    elif dress == "pruned":
        prune.l1_unstructured(conv, "weight", amount=0.5)
    elif dress == "old spectral_norm":
        torch.nn.utils.spectral_norm(conv)
    model = nn.Sequential(conv, nn.Conv2d(4, 2, 2))
    new = convert(model)
    assert type(new[1]) is fnn.Conv2d
    assert (type(new[0]) is fnn.Conv2d) == (dress in ("pruned", "old spectral_norm"))
    same(model, new, 2, 3, 6, 7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    same(model, new, 2, 3, 6, 7)


def test_a_lazy_layer_starts_through_either_model():
    model = nn.Sequential(nn.LazyConv2d(4, (3, 2)), nn.Conv2d(4, 2, 3))
    new = convert(model)
    new(image(1, 3, 7, 8))
    assert type(new[0]) is nn.Conv2d and new[0].weight is model[0].weight
    assert not new[0]._forward_pre_hooks and model[0]._forward_pre_hooks
    same(model, new, 1, 3, 7, 8)
    assert type(model[0]) is nn.Conv2d


def test_hooks_run_on_the_copy():
    calls = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))

    def note(kind):
        return lambda module, *rest: calls.append((kind, module))

    conv = model[0]
    handle = conv.register_forward_hook(note("forward"))
    conv.register_forward_pre_hook(lambda m, a, k: calls.append(("pre", m)), with_kwargs=True)
    conv.register_forward_hook(note("always"), always_call=True)
    conv.register_full_backward_hook(note("backward"))
    conv.register_full_backward_pre_hook(note("backward_pre"))
    conv.register_state_dict_pre_hook(note("save"))
    conv._register_state_dict_hook(note("saved"))
    conv.register_load_state_dict_pre_hook(note("load"))
    conv.register_load_state_dict_post_hook(note("loaded"))
    new = convert(model)
    handle.remove()  # from the original alone
    del model, conv  # a hook bound to a dead module would raise
    new(image(1, 3, 7, 8).requires_grad_()).sum().backward()
    new.load_state_dict(new.state_dict())
    assert {kind for kind, _ in calls} == {
        *("forward", "pre", "always", "backward", "backward_pre", "save", "saved", "load", "loaded")
    }
    assert all(module is new[0] for _, module in calls)


class Referring(nn.Module):
    """Holds its children in every way that is followed, and records what a hook saw."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.steps = [self.conv, (self.pool,)]
        self.steps.append(self.steps)  # and itself
        self.by_name = {"conv": self.conv, "plain": 1}
        self.run = functools.partial(self.apply_to, self.conv)
        self.bound = self.extra
        self.__dict__["direct"] = self.pool
        self.conv.owner = weakref.ref(self)
        self.plain = [1, 2]
        self.seen = []
        self.handle = self.conv.register_forward_hook(self.record)

    def apply_to(self, layer, x):
        return layer(x)

    def extra(self):
        return self

    def record(self, module, arguments, output):
        self.__dict__["seen"] = module

    def forward(self, x):
        assert self.by_name["conv"] is self.steps[0] is self.conv
        return self.direct(self.run(x)) + self.steps[1][0](self.steps[0](x))


def test_references_outside_the_tree_are_followed():
    model = Referring()
    new = convert(model)
    same(model, new, 1, 3, 6, 8)
    assert type(new.steps[0]) is fnn.Conv2d and new.steps[0] is new.conv
    assert new.run.args[0] is new.conv and new.run.func.__self__ is new
    assert new.bound() is new and new.conv.owner() is new
    assert new.seen is new.conv and model.seen is model.conv
    assert new.plain is model.plain and model.steps[0] is model.conv
    new.handle.remove()
    assert not new.conv._forward_hooks and model.conv._forward_hooks


def test_unregistered_modules_are_shared_and_reported():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model.spare = [nn.Conv2d(3, 3, 1)]
    new, report = convert(model, return_report=True)
    assert new.spare is model.spare
    assert report.left == [("spare", "Conv2d", "not registered as a child module")]


def test_an_optimizer_over_either_trains_both():
    model = Block()
    new = convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    before = new.conv.weight.detach().clone()
    new(image(2, 4, 9, 11)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(new.conv.weight, before)
    assert torch.equal(new.conv.weight, model.conv.weight)
    same(model.eval(), new.eval(), 2, 4, 9, 11)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_the_copy_can_be_copied(clone):
    new = convert(nn.Sequential(Block(), nn.Conv2d(4, 2, 2, bias=False)).eval())
    other = clone(new)
    assert type(other[1]) is fnn.Conv2d
    x = image(2, 4, 9, 11)
    assert torch.equal(other(x), new(x))
    assert other[1].weight is not new[1].weight


def test_in_inference_mode():
    model = Block().eval()
    x = image(2, 4, 9, 11)
    with torch.inference_mode():
        new = convert(model)
        made_here = convert(Block().eval())
        torch.testing.assert_close(new(x), model(x))
        made_here(x)
    new(x).sum().backward()
    assert model.conv.weight.grad is not None


def test_a_graph_module():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
    new = convert(model)
    assert type(new.get_submodule("0")) is fnn.Conv2d
    same(model, new, 1, 3, 7, 8)
    for node in new.graph.nodes:  # an edit of the copy's graph is its own
        if node.op == "call_module" and node.target == "1":
            node.replace_all_uses_with(node.args[0])
            new.graph.erase_node(node)
            break
    new.recompile()
    assert len(model.graph.nodes) == len(new.graph.nodes) + 1
    nn.init.constant_(model.get_submodule("0").bias, -3.0)  # shared: negative before the ReLU
    x = image(1, 3, 7, 8)
    assert new(x).min() < 0 <= model(x).min()


def test_a_compiled_call_is_not_inherited():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.compile(backend="eager")
    new = convert(model)
    assert new._compiled_call_impl is None and model._compiled_call_impl is not None
    seen = []
    new[0].register_forward_hook(lambda *arguments: seen.append(1))
    new(image(1, 3, 7, 8))
    assert seen


def test_parameters_of_other_modules_are_shared():
    model = nn.ModuleDict({"list": nn.ParameterList([torch.zeros(2)]), "rnn": nn.LSTM(3, 4)})
    new = convert(model)
    assert new["list"][0] is model["list"][0]
    x = image(5, 1, 3)
    assert torch.equal(new["rnn"](x)[0], model["rnn"](x)[0])


def test_wrong_argument():
    with pytest.raises(TypeError, match="torch.nn.Module, got Tensor"):
        convert(torch.zeros(1))
