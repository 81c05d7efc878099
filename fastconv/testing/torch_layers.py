"""fastconv.nn's names made of torch.nn alone: the reference side of every comparison.

`lenet(layers=torch_layers)` is the twin of `lenet()`, with the same state_dict.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv2d",
    "GlobalAvgPool2d",
    "Linear",
    "MaxPool2d",
    "ResidualAdd",
]

_ACTIVATE = {None: lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid}


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d, then the residual and the activation as operations of their own."""

    def __init__(self, *arguments, activation: str | None = None, **options) -> None:
        super().__init__(*arguments, **options)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        output = super().forward(input)
        if residual is not None:
            output = output + residual
        return _ACTIVATE[self.activation](output)


class Linear(torch.nn.Linear):
    """torch.nn.Linear, then the residual and the activation as operations of their own."""

    def __init__(self, *arguments, activation: str | None = None, **options) -> None:
        super().__init__(*arguments, **options)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        output = super().forward(input)
        if residual is not None:
            output = output + residual
        return _ACTIVATE[self.activation](output)


class GlobalAvgPool2d(AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d(1)."""

    def __init__(self) -> None:
        super().__init__(1)


class ResidualAdd(torch.nn.Module):
    """A sum, then the activation."""

    def __init__(self, activation: str | None = None) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor, shortcut: Tensor) -> Tensor:
        return _ACTIVATE[self.activation](input + shortcut)
