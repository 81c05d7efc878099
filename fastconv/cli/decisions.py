"""The discrete choices of a forward pass, taken down and taken over.

A ReLU's input within rounding of zero, or two maxima within rounding of each other, may fall either
way in float32, and each one that does moves the gradients by far more than rounding. Two float32
runs can so differ widely and both be right. Therefore a run writes its own decisions down
(`Recorder`), and the float64 truth that its gradients are compared with takes the same ones
(`Replay`). That the decisions themselves are right shows in the output, which ReLU and max pooling
make no jumps in, and which is compared with a truth that decides for itself (`Seeded`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import fastconv

RELUS = (F.relu, torch.relu, torch.relu_)


class Seeded(TorchFunctionMode):
    """Dropout draws its masks from a generator of its own: the same in every dtype, on any device.

    Args:
        seed: of that generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.dropout:
            return self._dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training:
            return input
        kept = torch.rand(input.shape, generator=self.generator) >= p
        return input * kept.to(input.device) / (1 - p)


class Recorder(Seeded):
    """Writes down where each ReLU passes its input, and which pixel each max pooling takes.

    decisions: in the order of the forward pass, bool (N, …) for a ReLU and int64 places in the
    H x W plane for a max pooling. torch's functions are seen here, fastconv's layers by hooks.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.decisions: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        if func in RELUS:
            self._relu(result)
        elif func is F.max_pool2d:
            self._max_pool(F.max_pool2d, *args, **(kwargs or {}))
        return result

    def _relu(self, output: Tensor) -> None:
        self.decisions.append(output.detach() > 0)

    def _max_pool(self, max_pool2d, *args, return_indices: bool = False, **options) -> None:
        with torch.no_grad():
            self.decisions.append(max_pool2d(*args, return_indices=True, **options)[1])

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Within it, the decisions of the network's fastconv layers are written down too."""
        layers = fastconv.nn
        handles = [
            module.register_forward_hook(self._see)
            for module in network.modules()
            if isinstance(module, layers.Conv2d | layers.ResidualAdd | layers.MaxPool2d)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(layer, nn.MaxPool2d):
            window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            self._max_pool(fastconv.max_pool2d, *inputs, *window, layer.ceil_mode)
        elif layer.activation == "relu":
            self._relu(output)


class Replay(Seeded):
    """torch's ReLUs and max poolings decide as was written down, in the same order.

    Raises:
        RuntimeError: a decision of another size, or too few.
    """

    def __init__(self, seed: int, decisions: list[Tensor]) -> None:
        super().__init__(seed)
        self.left = iter(decisions)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in RELUS:
            return args[0] * self._next(args[0].shape)
        if func is F.max_pool2d:
            places = self._next(args[0].shape[:2])
            return args[0].flatten(2).gather(2, places.flatten(2)).view(places.shape)
        return super().__torch_function__(func, types, args, kwargs)

    def _next(self, size: torch.Size) -> Tensor:
        decision = next(self.left, None)
        if decision is None or decision.shape[: len(size)] != size:
            found = None if decision is None else list(decision.shape)
            raise RuntimeError(f"a decision of size {list(size)} was expected, found {found}")
        return decision
