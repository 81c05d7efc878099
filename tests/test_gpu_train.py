"""Training on a real GPU: whole steps beside torch's, the commands, autocast, torch.compile, CUDA
graphs, memory. What `bench/gpu.sh train` runs first; what of it a CPU can show is in
test_training_step.py and test_train.py.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import pytest
import torch
from gpu import poison_cache

import fastconv
from fastconv import models
from fastconv.cli import main
from fastconv.cli.comparison import compare_networks
from fastconv.cli.networks import heads_of, loss_of
from fastconv.cli.training import Training
from fastconv.testing import torch_layers
from fastconv.testing.compare import tf32

pytestmark = pytest.mark.usefixtures("without_tf32")


class Step:
    """SGD steps of a network, channels_last, on one batch; calling it returns the loss.

    `compiled` is what torch.compile made of the network; `scaler` scales the loss.
    """

    def __init__(self, layers=fastconv.nn, name="resnet18", size=64, batch=8, dtype=None, amp=None):
        torch.manual_seed(0)
        self.network = models.NETWORKS[name](layers=layers).train()
        self.network.to("cuda", dtype, memory_format=torch.channels_last)
        x = torch.randn(batch, 3, size, size, device="cuda", dtype=dtype)
        self.x = x.to(memory_format=torch.channels_last)
        self.labels = torch.arange(batch, device="cuda")
        self.amp, self.compiled = amp, self.network
        # A scale that nothing here makes overflow, and a fused optimizer: without it the scaler
        # would read on the host whether something did.
        self.scaler = torch.amp.GradScaler("cuda", 1024.0, enabled=amp == torch.float16)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.02, momentum=0.9, fused=True)

    def __call__(self):
        self.optimizer.zero_grad()
        # NOTE a graph must not hold weights that were cast, and so cached, before it
        enabled = self.amp is not None
        with torch.autocast("cuda", self.amp, enabled=enabled, cache_enabled=False):
            heads = heads_of(self.compiled(self.x))
        loss = loss_of([head.float() for head in heads], self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def state(self):
        return copy.deepcopy((self.network.state_dict(), self.optimizer.state_dict()))

    def load(self, state):
        """In place, as a graph reads the tensors where they lie."""
        for name, value in self.network.state_dict().items():
            value.copy_(state[0][name])
        self.optimizer.load_state_dict(copy.deepcopy(state[1]))


AMP = [None, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*models.SIX, "resnet50"])
def test_a_step_is_as_good_as_torchs(name, dtype):
    """Outputs, every gradient and every parameter after the step, as `validate` holds them."""
    c, h, w = models.input_size(name)
    torch.manual_seed(0)
    pictures, labels = torch.randn(2, c, h, w, device="cuda"), torch.arange(2, device="cuda")
    row = compare_networks(name, pictures, labels, dtype, timed=False)
    assert row.ok, row.failures


@pytest.mark.parametrize("amp", AMP, ids=str)
def test_losses_fall_as_torchs_do(amp):
    ours, theirs = Step(amp=amp), Step(torch_layers, amp=amp)
    theirs.network.load_state_dict(ours.network.state_dict())
    mine, reference = ([step().item() for _ in range(20)] for step in (ours, theirs))
    assert mine[0] == pytest.approx(reference[0], rel=0.02)
    assert mine[-1] < 0.3 * mine[0] and reference[-1] < 0.3 * reference[0]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in ours.network.parameters())


@pytest.mark.parametrize("amp", AMP, ids=str)
def test_steps_repeat_to_the_bit(amp, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # for torch's batch norm
    step = Step(amp=amp)
    start, found = step.state(), []
    for _ in range(3):
        step.load(start)
        poison_cache()
        losses = torch.stack([step() for _ in range(3)])
        found.append([losses, *step.state()[0].values()])
    for again in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], again, strict=True))


@pytest.mark.parametrize("amp", AMP, ids=str)
def test_a_step_does_not_wait_for_the_gpu(amp):
    step = Step(amp=amp)
    step()
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)  # cycles, longer than the host takes for a step
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.cuda.current_stream().query(), "the step waited for the GPU"


@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_steps(backend, amp):
    eager, step = Step(amp=amp), Step(amp=amp)
    step.network.load_state_dict(eager.network.state_dict())
    torch._dynamo.reset()
    step.compiled = torch.compile(step.network, fullgraph=True, backend=backend)
    losses = [step().item() for _ in range(20)]
    assert losses[0] == pytest.approx(eager().item(), rel=0.02)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("amp", AMP, ids=str)
def test_a_whole_step_in_a_cuda_graph(amp):
    """Forward, loss, backward, scaler and optimizer; replays are steps, and repeat to the bit."""
    step = Step(amp=amp)
    start = step.state()
    expected = [step().item() for _ in range(3)]
    step.load(start)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    momenta = [s["momentum_buffer"] for s in step.optimizer.state.values()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    runs = []
    for _ in range(2):
        for name, value in step.network.state_dict().items():
            value.copy_(start[0][name])
        for momentum in momenta:
            momentum.zero_()
        poison_cache()
        losses = []
        for _ in range(3):
            graph.replay()
            losses.append(loss.item())
        runs.append((losses, copy.deepcopy(step.network.state_dict())))
    assert runs[0][0] == pytest.approx(expected, rel=0.05)
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_step_of_resnet50_needs_no_more_memory_than_torchs(dtype):
    """Parameters and momentum included; the second step's peak, and the third's is the same."""

    def peaks(layers):
        gc.collect()
        before = torch.cuda.memory_allocated()
        step = Step(layers, "resnet50", 224, batch=32, dtype=dtype)
        step()
        found = []
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            found.append(torch.cuda.max_memory_allocated() - before)
        return found

    ours, theirs = peaks(fastconv.nn), peaks(torch_layers)
    assert ours[0] == ours[1] <= theirs[1]


# --- the commands ---------------------------------------------------------------------------------


def need_demo():
    """Skips where the packages that the commands need are not installed."""
    for name in ("rich", "mlxtend", "PIL"):
        pytest.importorskip(name)


def test_validate(capsys):
    """Every layer and network is compared in the tests; here that the command runs there."""
    need_demo()
    with tf32(True):  # torch's default, which the command must not compare with
        assert main(["validate", "--device", "cuda", "--network", "lenet"]) == 0
    assert "all 4 comparisons passed" in capsys.readouterr().out


@pytest.mark.parametrize("amp", AMP, ids=str)
def test_lenet_learns(amp, capsys):
    need_demo()
    options = [] if amp is None else ["--amp", str(amp).removeprefix("torch.")]
    assert main(["train", "lenet", "--device", "cuda", "--epochs", "8", *options]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert int(line.split(": ")[1].split(" of 1000")[0]) > 900, line


@pytest.mark.parametrize("amp", [None, "bfloat16", "float16"])
def test_a_training_goes_on_to_the_bit(amp):
    need_demo()
    from test_train import LENET, assert_same_bits, few

    settings, pictures = replace(LENET, amp=amp), few(100)
    whole, stopped, resumed = (Training(settings, pictures, torch.device("cuda")) for _ in range(3))
    assert next(whole.model.parameters()).is_cuda
    steps = stopped.run()
    for _ in range(4):
        next(steps)
    resumed.load_state(stopped.model.state_dict(), copy.deepcopy(stopped.state()))
    for training in (whole, resumed):
        for _ in training.run():
            pass
    assert_same_bits(whole.model.state_dict(), resumed.model.state_dict())
    assert whole.history == resumed.history
