"""A whole training step where no GPU is needed to see it: what it keeps in memory, torch.compile,
autocast. Memory is counted on the meta device, so networks have their own size and batch."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastconv
from fastconv import models
from fastconv.cli.emulated import PARTS
from fastconv.cli.networks import heads_of, loss_of
from fastconv.testing import torch_layers
from fastconv.testing.compare import assert_good

BATCH = 32


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors alive, and what the CUDA kernels would take beside them.

    Args:
        before: tensors that were there already.
    """

    def __init__(self, before):
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        if func.namespace == "fastconv":
            self.peak = max(self.peak, self.now + workspace(func, args, results))
        return results

    def _see(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


def workspace(func, args, output):
    """Bytes of the float32 parts that a convolution's CUDA kernel leaves on an H100."""
    name = func._schema.name.removeprefix("fastconv::").removesuffix("_raw")
    if name == "conv2d":
        (x, w), window = args[:2], args[4:13]
        sizes, direction = (x.shape, w.shape), "forward"
    elif name == "conv2d_input_grad":
        w, window = args[1], args[4:13]
        sizes, direction = (output.shape, w.shape), "input_grad"
    elif name in ("conv2d_weight_grad", "conv2d_weight_bias_grad"):
        x, window = args[0], args[4:13]
        output = output[0] if isinstance(output, tuple) else output
        sizes, direction = (x.shape, output.shape), "weight_grad"
    else:
        return 0
    stride, pads, dilation, groups = window[:2], window[2:6], window[6:8], window[8]
    assert pads[:2] == pads[2:]
    found = fastconv.explain(
        *sizes, stride, pads[:2], dilation, groups,
        direction=direction, backend="cuda", dtype=output.dtype,
    )  # fmt: skip
    splits = found.estimate.splits
    return 4 * splits * output.numel() if splits > 1 or direction == "weight_grad" else 0


def memory_of_a_step(layers, name, dtype):
    """(saved for backward: bytes by dtype, bytes at the peak) of forward, loss and backward.

    Beside parameters, buffers, pictures and labels.
    """
    with torch.device("meta"):
        network = models.NETWORKS[name](layers=layers).train()
        network.to(dtype=dtype, memory_format=torch.channels_last)
        x = torch.empty(BATCH, *models.input_size(name), dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        labels = torch.empty(BATCH, dtype=torch.int64)
    live = Live([*network.parameters(), *network.buffers(), x, labels])
    before, saved = frozenset(live.known), {}

    def save(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in before:
            saved[storage._cdata] = (tensor.dtype, storage.nbytes())
        return tensor

    with live, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss_of([head.float() for head in heads_of(network(x))], labels).backward()
    by_dtype = {}
    for kind, size in saved.values():
        by_dtype[kind] = by_dtype.get(kind, 0) + size
    return by_dtype, live.peak


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", [*models.SIX, "resnet50"])
def test_a_step_needs_no_more_memory_than_torchs(name, dtype):
    """Nothing that a step reads on the host either: the meta device has no values.

    torch's figure is without what cuDNN takes beside its tensors. A fused activation's incoming
    gradient is kept while that of the sum is made and used, one tensor more than torch keeps; all
    but NiN in float32 make up for it by the bytes of the max poolings' indices.
    """
    theirs, their_peak = memory_of_a_step(torch_layers, name, dtype)
    ours, our_peak = memory_of_a_step(fastconv.nn, name, dtype)
    assert sum(ours.values()) <= sum(theirs.values())
    more = 1.03 if (name, dtype) == ("nin", torch.float32) else 1
    assert our_peak <= more * their_peak
    assert set(ours) <= {dtype, torch.float32, torch.uint8}  # no int64 index of a max pooling


def saved_by(function):
    """A call's output, and what autograd keeps of it by address."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), id):
        output = function()
    return output, kept


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_a_fused_convolution_saves_its_operands_and_the_output_alone(activation):
    """Neither what the activation was given, nor bias and residual, whose gradients need none."""
    x, w, b = torch.randn(2, 4, 9, 7), torch.randn(6, 4, 3, 3), torch.randn(6)
    r = torch.randn(2, 6, 7, 5)
    x, w, b, r = (t.requires_grad_() for t in (x, w, b, r))
    y, kept = saved_by(lambda: fastconv.conv2d(x, w, b, residual=r, activation=activation))
    expected = (x, w) if activation is None else (x, w, y)
    assert kept.keys() == {t.data_ptr() for t in expected}


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_a_residual_add_saves_its_output_or_nothing(activation):
    x, r = (torch.randn(2, 6, 7, 5, requires_grad=True) for _ in range(2))
    y, kept = saved_by(lambda: fastconv.residual_add(x, r, activation))
    assert list(kept) == ([] if activation is None else [y.data_ptr()])


def test_a_max_pooling_saves_a_byte_an_output():
    x = torch.randn(2, 8, 19, 14, requires_grad=True)
    y, kept = saved_by(lambda: fastconv.max_pool2d(x, 3, 2, 1))
    assert [(t.dtype, t.numel()) for t in kept.values()] == [(torch.uint8, y.numel())]


# --- torch.compile and autocast -------------------------------------------------------------------

# name -> (network, input)
NETWORKS = {
    "lenet": (lambda layers: models.lenet(layers=layers), (4, 1, 28, 28)),
    "classic": (
        lambda layers: models.classic_cnn((3, 16, 12), (8, 12), classes=10, layers=layers),
        (4, 3, 16, 12),
    ),
    "resnet": (
        lambda layers: torch.nn.Sequential(
            PARTS["resnet Bottleneck"][0](layers),
            layers.MaxPool2d(3, 2, 1),
            layers.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(128, 10),
        ),
        (4, 64, 9, 7),
    ),
}


def train(network, score, x, labels, amp=None, steps=3):
    """The losses of SGD steps; `score` is the network or what torch.compile made of it."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", amp, enabled=amp is not None):
            scores = score(x)
        loss = F.cross_entropy(scores.float(), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_steps_are_one_graph_and_give_what_eager_ones_give(name, amp):
    build, size = NETWORKS[name]
    eager = build(fastconv.nn)
    x, labels = torch.randn(size), torch.arange(size[0])
    start = {k: v.clone() for k, v in eager.state_dict().items()}
    expected = train(eager, eager, x, labels, amp)
    network = build(fastconv.nn)
    network.load_state_dict(start)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    losses = train(network, compiled, x, labels, amp)
    assert counter.frame_count == 1
    tolerance = {} if amp is None else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(losses, expected, **tolerance)
    for mine, other in zip(network.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


def test_a_whole_step_compiles():
    """Forward, backward and optimizer in one function, with the breaks that torch makes in it."""
    build, size = NETWORKS["resnet"]
    x, labels = torch.randn(size), torch.arange(size[0])

    def trained(compiler):
        torch.manual_seed(1)
        network = build(fastconv.nn)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)

        def step(x):
            optimizer.zero_grad()
            F.cross_entropy(network(x), labels).backward()
            optimizer.step()

        step = compiler(step)
        for _ in range(3):
            step(x)
        return network.parameters()

    torch._dynamo.reset()
    compiled = trained(lambda step: torch.compile(step, backend="aot_eager"))
    for mine, expected in zip(compiled, trained(lambda step: step), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_under_autocast_are_as_good_as_torchs(name, amp):
    build, size = NETWORKS[name]
    twin, network = build(torch_layers), build(fastconv.nn)
    network.load_state_dict(twin.state_dict())
    exact = build(torch_layers)
    exact.load_state_dict(twin.state_dict())
    x, labels = torch.randn(size), torch.arange(size[0])
    for net in (twin, network):
        with torch.autocast("cpu", amp):
            scores = net(x)
        F.cross_entropy(scores.float(), labels).backward()
    F.cross_entropy(exact.double()(x.double()), labels).backward()
    triples = zip(network.parameters(), twin.parameters(), exact.parameters(), strict=True)
    for mine, theirs, true in triples:
        assert_good(mine.grad, theirs.grad, true.grad, torch.float32, factor=10)
