"""torch's machinery over the Triton ops: compile, export, vmap, opcheck, and other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from conftest import interpreted_triton

import fastconv
from fastconv.backend import current_backend

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def triton():
    with interpreted_triton():
        yield


def block(x, w, shortcut):
    y = fastconv.conv2d(x, w, padding=1, residual=shortcut, activation="relu")
    y = fastconv.max_pool2d(y, 2)
    return fastconv.residual_add(y, fastconv.avg_pool2d(x, 2), "sigmoid")


def operands(n=2):
    x, w = torch.randn(n, 6, 8, 10), torch.randn(6, 6, 3, 3)
    return x.requires_grad_(), w.requires_grad_(), torch.randn(n, 6, 8, 10)


def assert_equals_block(compiled, args):
    """Results and gradients."""
    ours, expected = compiled(*args), block(*args)
    torch.testing.assert_close(ours, expected)
    for a, c in zip(
        torch.autograd.grad(ours.square().sum(), args[:2]),
        torch.autograd.grad(expected.square().sum(), args[:2]),
        strict=True,
    ):
        torch.testing.assert_close(a, c)


def test_compile():
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for args in (operands(), operands(3)):
        assert_equals_block(compiled, args)


def test_a_compiled_call_follows_the_backend_around_it_and_in_it():
    """The fixture's backend is Triton; the guard sees when it is another, in this thread only."""
    torch._dynamo.reset()
    graphs = []

    def record(graph, inputs):
        targets = (str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        graphs.append([name.split(".")[0] for name in targets])
        return graph

    @torch.compile(fullgraph=True, backend=record)
    def run(x, w):
        with fastconv.backend("cpu"):
            y = fastconv.conv2d(x, w)
        return fastconv.conv2d(y, w)

    x, w = torch.randn(1, 3, 7, 6), torch.randn(3, 3, 3, 2)
    ours, fastconvs = "fastconv_triton", "fastconv"
    run(x, w)
    assert graphs == [[fastconvs, ours]] and current_backend() == "triton"
    with fastconv.backend("cpu"):
        run(x, w)
    assert graphs[1:] == [[fastconvs, fastconvs]]
    seen = []
    other = threading.Thread(target=lambda: (run(x, w), seen.append(current_backend())))
    other.start()
    other.join()
    run(x, w)
    assert seen == [None] and graphs[2:] == [[fastconvs, fastconvs]]


def test_export():
    class Block(torch.nn.Module):
        forward = staticmethod(block)

    args = tuple(t.detach() for t in operands())
    program = torch.export.export(Block(), args)
    assert "fastconv_triton" in program.graph_module.code
    torch.testing.assert_close(program.module()(*args), block(*args))


def test_vmap_and_grad():
    x, w = (t.detach().double() for t in operands(3)[:2])

    def loss(w, x):
        return fastconv.conv2d(x[None], w, padding=1).square().sum()

    expected = torch.stack(
        [torch.func.grad(lambda w, i=i: F.conv2d(x[i : i + 1], w, padding=1).square().sum())(w)
         for i in range(3)]
    )  # fmt: skip
    mapped = torch.vmap(torch.func.grad(loss), (None, 0))(w, x)
    torch.testing.assert_close(mapped, expected)


@pytest.mark.parametrize(
    "name",
    ["conv2d", "conv2d_weight_grad", "conv2d_weight_bias_grad", "activation_bias_grad"]
    + ["max_pool2d_window"],
)
@pytest.mark.parametrize("suffix", ["", "_raw"])
def test_opcheck(name, suffix):
    x, w, dy = torch.randn(1, 3, 7, 6), torch.randn(4, 3, 3, 2), torch.randn(1, 4, 4, 7)
    window = (2, 1, 1, 1, 1, 1, 1, 1, 1)
    args = {
        "conv2d": (x, w, None, None, *window, 1, 0),
        "conv2d_weight_grad": (x, dy, 3, 2, *window, 0),
        "conv2d_weight_bias_grad": (x, dy, 3, 2, *window, 0, torch.rand_like(dy), 1),
        "activation_bias_grad": (dy, torch.rand_like(dy), 2),
        "max_pool2d_window": (x, 3, 2, 2, 1, 1, 1, 1, 1, 0),
    }[name]
    if not suffix:
        args = tuple(a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args)
    torch.library.opcheck(getattr(torch.ops.fastconv_triton, name + suffix).default, args)


def test_wrong_devices_and_backends():
    with pytest.raises(RuntimeError, match="same dtype"):
        fastconv.conv2d(torch.randn(1, 2, 5, 6), torch.randn(3, 2, 3, 3).double())
    assert fastconv.conv2d(torch.randn(1, 2, 5, 6, device="meta"),
                           torch.randn(3, 2, 3, 3, device="meta")).is_meta  # fmt: skip


# --- other processes -----------------------------------------------------------------------------


def python(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=kept | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_package_the_rest_works():
    output = python("""
import sys
sys.modules["triton"] = None
import torch, fastconv
print(fastconv.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)).item())
try:
    with fastconv.backend("triton"):
        pass
except NotImplementedError as error:
    print(error)
print(fastconv.build_info()["Triton"])
try:  # as for a tensor on CUDA
    fastconv.ops.registry._on_triton("conv2d", ())
except NotImplementedError as error:
    print(error)
""")
    assert output.startswith("9.0\n") and "not installed" in output.splitlines()[1]
    assert output.splitlines()[2].startswith("no")
    assert output.splitlines()[3].startswith("conv2d: fastconv was built without CUDA")


def test_without_the_interpreter_the_ops_are_traced_but_want_a_gpu():
    output = python("""
import torch, fastconv
from torch._subclasses.fake_tensor import FakeTensorMode
x, w = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
with fastconv.backend("triton"):
    try:
        fastconv.conv2d(x, w)
    except RuntimeError as error:
        print(error)
    class Net(torch.nn.Module):
        def forward(self, x, w):
            return fastconv.max_pool2d(fastconv.conv2d(x, w, padding=1, activation="relu"), 2)
    print(torch.export.export(Net(), (x, w)).graph_module.code.count("fastconv_triton"))
    with FakeTensorMode():
        print(tuple(fastconv.conv2d(torch.ones(2, 3, 9, 7), torch.ones(4, 3, 3, 3)).shape))
""")
    refused, nodes, shape = output.splitlines()
    assert "TRITON_INTERPRET=1" in refused and nodes == "2" and shape == "(2, 4, 7, 5)"


CAPTURE = """
import torch, fastconv, triton_offline
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

def record(graph, inputs):
    names = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    laid_out = [n for n in graph.graph.nodes if "memory_format" in n.kwargs]
    print(names.count("triton_kernel_wrapper_functional"), sum("fastconv" in n for n in names),
          sum("empty" in str(n.target) for n in laid_out))
    *_, last = graph.graph.nodes
    sizes = [v.meta["val"].shape if isinstance(v, torch.fx.Node) else None for v in last.args[0]]
    return make_boxed_func(lambda *args: [None if s is None else torch.zeros(s) for s in sizes])

def block(x, w):
    return fastconv.max_pool2d(fastconv.conv2d(x, w, padding=1, activation="relu"), 2)

triton_offline.offline(90)
x, w = (torch.ones(s) for s in ((2, 8, 9, 7), (16, 8, 3, 3)))
x, w = x.contiguous(memory_format=torch.channels_last).requires_grad_(), w.requires_grad_()
with fastconv.backend("triton"):
    y = torch.compile(block, fullgraph=True, backend=aot_autograd(fw_compiler=record))(x, w)
    y.sum().backward()
"""


def test_compiled_graphs_hold_the_kernels_themselves():
    """Convolution and pooling forward; the gradients of pooling, activation, input and weight, the
    last of one split, so without a kernel that adds them. No output is an `empty` of a memory
    format, which Inductor makes dense and copies."""
    output = python(CAPTURE, PYTHONPATH=os.pathsep.join(sys.path))
    assert output.splitlines() == ["2 0 0", "4 0 0"]


DYNAMIC = """
import torch, fastconv, triton_offline
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

graphs = 0

def record(graph, inputs):  # what it makes returns zeros of the sizes that the graph would
    global graphs
    graphs += 1
    nodes = list(graph.graph.nodes)
    given = [n.meta["val"] for n in nodes if n.op == "placeholder"]
    results = [n.meta["val"] if isinstance(n, torch.fx.Node) else n for n in nodes[-1].args[0]]

    def run(*args):
        sizes = {g.node.expr: a for g, a in zip(given, args) if isinstance(g, torch.SymInt)}
        number = lambda n: int(n.node.expr.subs(sizes)) if isinstance(n, torch.SymInt) else n
        zeros = lambda t: torch.zeros([*map(number, t.shape)], dtype=t.dtype)
        return [zeros(r) if isinstance(r, torch.Tensor) else number(r) for r in results]

    return make_boxed_func(run)

def block(x, w, b, v):
    y = fastconv.max_pool2d(fastconv.conv2d(x, w, b, padding=1, activation="relu"), 2)
    y = fastconv.avg_pool2d(fastconv.conv2d(y, v, stride=2), 2)
    return fastconv.residual_add(y, y, "relu")

triton_offline.offline(90)
w, b, v = (torch.ones(s, requires_grad=True) for s in ((16, 8, 3, 3), (16,), (24, 16, 1, 1)))
compiled = torch.compile(block, fullgraph=True, backend=aot_autograd(fw_compiler=record))
with fastconv.backend("triton"):
    for n in (6, 7, 9):
        x = torch.ones(n, 8, 19, 17).contiguous(memory_format=torch.channels_last).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        compiled(x, w, b, v).sum().backward()
        print(n, *x.grad.shape, graphs)
"""


def test_a_batch_of_any_size_trains_with_one_graph():
    """No choice of a tile or of splits makes the batch a constant."""
    output = python(DYNAMIC, PYTHONPATH=os.pathsep.join(sys.path))
    assert output.splitlines() == [f"{n} {n} 8 19 17 2" for n in (6, 7, 9)]


@pytest.mark.skipif(fastconv._C.cuda, reason="the CUDA kernels serve CUDA tensors")
def test_cuda_tensors_are_served_where_there_are_no_cuda_kernels():
    for name in ("conv2d", "max_pool2d_grad_raw", "residual_add_raw"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastconv::{name}", "CUDA")
