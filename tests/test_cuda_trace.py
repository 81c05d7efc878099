"""torch.compile over CUDA tensors without data: what Dynamo reads there only, on any machine."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.exc import BackendCompilerFailed
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv
from fastconv import models
from fastconv.ops.sizes import allows_tf32


class Traced(Exception):
    pass


@pytest.fixture
def trace():
    """The names of fastconv's ops in the one graph of a function of fake CUDA tensors."""
    found = []

    def keep(graph, _):
        calls = [node for node in graph.graph.nodes if node.op == "call_function"]
        found.extend(str(node.target) for node in calls if "fastconv" in str(node.target))
        found.extend(node.args[-1] for node in calls if "fastconv.conv2d" in str(node.target))
        raise Traced  # nothing runs: a CPU build of torch has no CUDA

    def run(function, *sizes):
        found.clear()
        torch._dynamo.reset()
        inputs = [torch.empty(size, device="cuda") for size in sizes]
        with pytest.raises(BackendCompilerFailed, match="Traced"):
            torch.compile(function, fullgraph=True, backend=keep)(*inputs)
        return found

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield run


def on_fake_cuda(network):
    """Of the meta device to fake CUDA."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, t in tensors.items():
                if t is not None:
                    made = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
                    keeps = isinstance(t, torch.nn.Parameter)
                    tensors[name] = torch.nn.Parameter(made, False) if keeps else made
    return network


@pytest.mark.parametrize("name", models.SIX)
def test_networks_are_one_graph(trace, name):
    with torch.device("meta"):
        network = models.NETWORKS[name]().eval()
    ops = trace(on_fake_cuda(network), (2, *models.input_size(name)))
    assert "fastconv.conv2d.default" in ops


@pytest.mark.parametrize("allowed", [False, True])
def test_the_graph_holds_torchs_precision(trace, monkeypatch, allowed):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)

    def block(x, w):
        return fastconv.conv2d(x, w, padding=1, activation="relu")

    assert trace(block, (1, 8, 9, 7), (16, 8, 3, 3))[1:] == [int(allowed)]


def test_another_precision_compiles_again():
    """By the older switch and by the newer, in the same function."""
    graphs = []

    def function(x):
        return F.relu(x) + int(allows_tf32())

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(function, fullgraph=True, backend=count)
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    try:
        for allowed in (True, False, True):
            cudnn.allow_tf32 = allowed
            assert compiled(torch.zeros(1)).item() == allowed
        cudnn.conv.fp32_precision = "ieee"
        assert compiled(torch.zeros(1)).item() == 0
        assert len(graphs) == 2
    finally:
        cudnn.allow_tf32 = before
