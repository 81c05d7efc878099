"""fastconv beside torch: one network or one layer, computed by both and compared.

Truth is torch's layers in float64 on the same rounded weights and inputs. float64 itself is held to
`TIGHT`; any other dtype to the rule of fastconv.testing.compare, with these factors on torch's own
error: that of the algorithm (2, or 8 for Winograd) for a layer, 10 for what went through a whole
network.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fastconv
from fastconv.explain import DIRECTIONS
from fastconv.testing import compare, torch_layers
from fastconv.testing.layers import Layer

from .checkpoint import first_line
from .decisions import Recorder, Replay, Seeded
from .networks import build, heads_of, loss_of

TIGHT = 1e-11  # float64; up to 2e-13 was seen, in a network with batch norm
NETWORK_FACTOR = 10.0
LEARNING_RATE, WEIGHT_DECAY = 0.01, 1e-4  # of the one SGD step
TIMING_ROUNDS, TIMING_SECONDS = 3, 1.0
PIECE = 1 << 22  # elements

Results = dict[str, Tensor]
Step = Callable[..., Results]


@dataclass
class Row:
    """One line of the table; `tensor` is the one that uses most of its tolerance."""

    kind: str
    name: str
    input: str
    dtype: str
    parameters: int = 0
    tensor: str = ""
    error: float = 0.0
    allowed: float = math.inf
    torch_ms: float | None = None
    fastconv_ms: float | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures and self.tensor != ""

    def add(self, name: str, actual: Tensor, truth: Tensor, allowed: Sequence[float]) -> None:
        """Holds each piece of a tensor to its relative rms error; NaN is always a failure."""
        if actual.shape != truth.shape:
            shapes = f"shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
            self._note(name, math.inf, allowed[0], shapes)
            return
        for piece, true_piece, limit in zip(pieces(actual), pieces(truth), allowed, strict=True):
            self._judge(name, piece, true_piece, limit)

    def _judge(self, name: str, actual: Tensor, truth: Tensor, allowed: float) -> None:
        error = math.inf
        complaint = None
        if dtype_name(actual.dtype) != self.dtype:
            complaint = f"dtype {dtype_name(actual.dtype)}, expected {self.dtype}"
        elif actual.isnan().any() or truth.isnan().any():
            error, complaint = math.nan, "NaN"
        else:
            truth = overflowed(truth, actual.dtype)
            finite = truth.isfinite()
            if finite.all() or torch.equal(actual[~finite].double(), truth[~finite]):
                error = compare.relative_rms(actual, truth)
        self._note(name, error, allowed, complaint)

    def _note(self, name: str, error: float, allowed: float, complaint: str | None) -> None:
        if not error <= allowed:
            complaint = complaint or f"relative rms error {error:.3g}, allowed {allowed:.3g}"
            self.failures.append(f"{name}: {complaint}")
        if self.tensor == "" or not error / allowed <= self.error / self.allowed:
            self.tensor, self.error, self.allowed = name, error, allowed


def pieces(tensor: Tensor) -> Sequence[Tensor]:
    """The elements in pieces small enough that float64 copies of one take little memory."""
    return tensor.reshape(-1).split(PIECE)


def overflowed(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """The truth, infinite where `dtype` overflows."""
    rounded = truth.to(dtype)
    return torch.where(rounded.isinf(), rounded.double(), truth)


def allowed_errors(
    reference: Tensor, truth: Tensor, dtype: torch.dtype, factor: float
) -> list[float]:
    """For each piece, TIGHT for float64, else by the rule of compare.allowed_error."""
    both = zip(pieces(reference), pieces(truth), strict=True)
    if dtype == torch.float64:
        return [TIGHT for _ in both]
    return [compare.allowed_error(torch_piece, piece, dtype, factor) for torch_piece, piece in both]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def size_name(size: torch.Size) -> str:
    return "x".join(map(str, size))


def training_step(network: nn.Module, pictures: Tensor, labels: Tensor) -> Results:
    """What forward computes, every gradient, and every parameter and buffer after an SGD step.

    The tensors are the network's own: the next step writes into them.
    """
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    optimizer.zero_grad()
    results, loss = forward(network, pictures, labels)
    loss.backward()
    for name, parameter in network.named_parameters():
        results[f"{name}.grad"] = parameter.grad
    optimizer.step()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            results[f"{name} stepped"] = value
    return results


def forward(network: nn.Module, pictures: Tensor, labels: Tensor) -> tuple[Results, Tensor]:
    """The output of every head and the loss, in training mode; and the loss to differentiate."""
    heads = heads_of(network.train()(pictures))
    loss = loss_of(heads, labels)
    names = ("output", *(f"output of head {i}" for i in range(1, len(heads))))
    results = {name: head.detach() for name, head in zip(names, heads, strict=True)}
    return {**results, "loss": loss.detach()}, loss


def compare_networks(
    name: str,
    pictures: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    *,
    title: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    timed: bool = True,
) -> Row:
    """One training step of a network from fastconv's ops beside one from torch.nn's layers.

    Whatever is raised becomes the row's failure.

    Args:
        name: one of networks.NAMES. pictures: (N, C, H, W), any floating dtype. labels: (N).
        title: the row's name. arguments: the builder's.
        weights: a state_dict; None: as initialised with `seed`.
        timed: also time the two steps.
    """
    row = Row("network", title or name, size_name(pictures.shape), dtype_name(dtype))

    def make(layers, dtype: torch.dtype) -> nn.Module:
        return build(name, arguments, layers).to(pictures.device, dtype)

    try:
        torch.manual_seed(seed)
        twin, network = make(torch_layers, dtype), make(fastconv.nn, dtype)
        if weights is not None:
            twin.load_state_dict(weights)
        row.parameters = sum(p.numel() for p in twin.parameters())
        inputs = (pictures.to(dtype), labels)
        networks = (twin, network, make(torch_layers, torch.float64))
        compare_steps(row, networks, inputs, seed, training_step, forward)
        if timed:
            row.torch_ms, row.fastconv_ms = milliseconds(
                lambda: training_step(twin, *inputs), lambda: training_step(network, *inputs)
            )
    except Exception as error:  # a kernel that refuses is one row that fails
        row.failures.append(f"{type(error).__name__}: {first_line(error)}")
    return row


def compare_steps(
    row: Row,
    networks: tuple[nn.Module, nn.Module, nn.Module],
    inputs: tuple[Tensor, ...],
    seed: int,
    step: Step,
    forward: Callable[..., tuple[Results, Tensor]],
    own_step: Step | None = None,
) -> None:
    """Fills the row: outputs against the plain truth, the rest against truths that decide alike.

    Args:
        networks: torch's layers with the weights, fastconv's, and torch's in float64.
        inputs: of `step`, which goes forward and backward, and of `forward`.
        own_step: fastconv's, where it is run in another way.
    """
    twin, network, exact = networks
    start = {key: value.clone() for key, value in twin.state_dict().items()}
    network.load_state_dict(start)
    exact.load_state_dict(start)
    dtype = inputs[0].dtype
    exact_inputs = [t.double() if t.is_floating_point() else t for t in inputs]

    def truth(decisions: list[Tensor]) -> Results:
        exact.load_state_dict(start)
        with Replay(seed, decisions):
            return step(exact, *exact_inputs)

    with Recorder(seed) as torch_pass:
        reference = step(twin, *inputs)
    with Recorder(seed) as own_pass, own_pass.watching(network):
        actual = (own_step or step)(network, *inputs)
    with Seeded(seed), torch.no_grad():
        plain, _ = forward(exact, *exact_inputs)

    def limits(name: str, truth: Results) -> list[float]:
        return allowed_errors(reference[name], truth[name], dtype, NETWORK_FACTOR)

    for name in plain:
        # One number, the loss, may come out right by chance; then the output is the measure.
        least = max(limits("output", plain))
        row.add(name, actual[name], plain[name], [max(each, least) for each in limits(name, plain)])
    expected = truth(torch_pass.decisions)
    allowed = {name: limits(name, expected) for name in expected if name not in plain}
    if not same(torch_pass.decisions, own_pass.decisions):
        expected = truth(own_pass.decisions)
    for name in allowed:
        row.add(name, actual[name], expected[name], allowed[name])


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def compare_layer(
    layer: Layer, dtype: torch.dtype, device: torch.device, *, seed: int = 0, timed: bool = True
) -> Row:
    """One convolution layer beside nn.Conv2d: output, gradients of input, weight and bias.

    Batch 1, normally distributed input and incoming gradient. Whatever is raised becomes the row's
    failure.
    """
    size = torch.Size((1, layer.C, layer.H, layer.W))
    row = Row("layer", layer.name, size_name(size), dtype_name(dtype))

    def make(kind: type[nn.Conv2d]) -> nn.Conv2d:
        window = (layer.R, layer.S), layer.stride, layer.padding, layer.dilation, layer.groups
        return kind(layer.C, layer.K, *window, device=device, dtype=dtype)

    def layer_factor(name: str) -> float:
        direction = {"output": "forward"}.get(name, name.replace(".", "_"))
        if direction not in DIRECTIONS:  # the bias gradient is a sum
            return compare.FACTOR
        window = layer.stride, layer.padding, layer.dilation, layer.groups
        sizes = size, (layer.K, layer.C // layer.groups, layer.R, layer.S)
        return compare.factor_of(direction, *sizes, *window, backend=device.type, dtype=dtype)

    def both_ways(conv: nn.Conv2d, x: Tensor, grad: Tensor) -> Results:
        x = x.clone().requires_grad_()
        output = conv(x)
        grads = torch.autograd.grad(output, (x, conv.weight, conv.bias), grad)
        names = ("input.grad", "weight.grad", "bias.grad")
        return {"output": output.detach(), **dict(zip(names, grads, strict=True))}

    try:
        torch.manual_seed(seed)
        twin, conv = make(nn.Conv2d), make(fastconv.nn.Conv2d)
        conv.load_state_dict(twin.state_dict())
        row.parameters = sum(p.numel() for p in twin.parameters())
        x = torch.randn(size).to(device, dtype)
        grad = torch.randn(twin(x).shape).to(device, dtype)
        reference, actual = both_ways(twin, x, grad), both_ways(conv, x, grad)
        if timed:
            row.torch_ms, row.fastconv_ms = milliseconds(
                lambda: both_ways(twin, x, grad), lambda: both_ways(conv, x, grad)
            )
        expected = both_ways(twin.double(), x.double(), grad.double())
        for name, truth in expected.items():
            allowed = allowed_errors(reference[name], truth, dtype, layer_factor(name))
            row.add(name, actual[name], truth, allowed)
    except Exception as error:  # a kernel that refuses is one row that fails
        row.failures.append(f"{type(error).__name__}: {first_line(error)}")
    return row


def milliseconds(*tasks: Callable[[], object]) -> list[float]:
    """The median of a few calls of each task, in turn; an indication, not a benchmark."""
    samples: list[list[float]] = [[] for _ in tasks]
    start = time.perf_counter()
    for _ in range(TIMING_ROUNDS):
        for task, times in zip(tasks, samples, strict=True):
            before = time.perf_counter()
            task()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            times.append((time.perf_counter() - before) * 1e3)
        if time.perf_counter() - start > TIMING_SECONDS:
            break
    return [statistics.median(times) for times in samples]
