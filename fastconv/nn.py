"""torch.nn's 2-D convolution, pooling and linear layers over fastconv's ops.

Signatures, defaults, repr and state_dict keys are torch.nn's. Each layer derives from its torch.nn
namesake, so initialisers, profilers and `isinstance` checks written for torch.nn keep working.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import (
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    global_avg_pool2d,
    linear,
    max_pool2d,
    residual_add,
)
from .packing import cache_size, clear_cache, kept_conv2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv2d",
    "GlobalAvgPool2d",
    "Linear",
    "MaxPool2d",
    "ResidualAdd",
    "cache_size",
    "clear_cache",
]

_ACTIVATIONS = (None, "relu", "sigmoid")


def _check_activation(activation: str | None) -> str | None:
    if activation not in _ACTIVATIONS:
        raise ValueError(f'activation must be None, "relu" or "sigmoid", got {activation!r}')
    return activation


def _tensor(module: torch.nn.Module, name: str) -> Tensor | None:
    """`getattr(module, name)`, without Module.__getattr__'s search for a plain parameter.

    A parametrization is a property of the class, and pruning or weight norm leave an attribute of
    the instance; both take the name out of `_parameters`, and an instance's attribute goes first.
    """
    attributes = module.__dict__
    parameters = attributes["_parameters"]
    if name in parameters and name not in attributes:
        return parameters[name]
    return getattr(module, name)


class Conv2d(torch.nn.Conv2d):
    """activation(conv2d(input, weight) + bias + residual).

    In eval mode, without gradients and on the CPU, it keeps its packed weights between calls:
    fastconv.packing.

    `torch.nn.Conv2d` with one more, keyword-only argument. A `padding_mode` other than "zeros"
    pads the input first, as torch.nn.Conv2d does.

    Args:
        activation: None, "relu" or "sigmoid", applied by the convolution itself.

    Shape:
        input (N, in_channels, H, W) or (in_channels, H, W); residual and output
        (N, out_channels, P, Q) or (out_channels, P, Q), where
        P = floor((H + 2 padding - dilation (R - 1) - 1) / stride) + 1, and Q likewise.

    Raises:
        ValueError: an unknown activation, or arguments that torch.nn.Conv2d refuses.
    """

    activation: str | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        activation: str | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.activation = _check_activation(activation)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            padding = 0
        return conv2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            residual=residual,
            activation=self.activation,
        )

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self.training and type(self)._conv_forward is Conv2d._conv_forward:
            output = kept_conv2d(self, input, residual)
            if output is not None:
                return output
        return self._conv_forward(input, _tensor(self, "weight"), _tensor(self, "bias"), residual)

    def train(self, mode: bool = True) -> Conv2d:
        clear_cache(self)
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> Conv2d:
        clear_cache(self)
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        clear_cache(self)
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_weight_cache"}

    def extra_repr(self) -> str:
        tail = "" if self.activation is None else f", activation={self.activation}"
        return super().extra_repr() + tail


class Linear(torch.nn.Linear):
    """activation(linear(input, weight) + bias + residual).

    `torch.nn.Linear` with one more, keyword-only argument. No packed weights are kept: of a small
    batch the weights are read where they lie, and packed ones would double the memory. Off the
    CPU, without residual and activation, it is torch's own: CUDA's weight gradient leaves float32
    parts as large as the weight, and a training step of AlexNet in float16 would need 309 MB for
    torch's 179.

    Args:
        activation: None, "relu" or "sigmoid", applied by the layer itself.

    Shape:
        input (..., in_features); residual and output (..., out_features).

    Raises:
        ValueError: an unknown activation.
    """

    activation: str | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        activation: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = _check_activation(activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        weight, bias = _tensor(self, "weight"), _tensor(self, "bias")
        if not input.is_cpu and residual is None and self.activation is None:
            return torch.nn.functional.linear(input, weight, bias)
        return linear(input, weight, bias, residual=residual, activation=self.activation)

    def extra_repr(self) -> str:
        tail = "" if self.activation is None else f", activation={self.activation}"
        return super().extra_repr() + tail


class MaxPool2d(torch.nn.MaxPool2d):
    """The maximum of each window; `torch.nn.MaxPool2d`.

    Shape:
        input (N, C, H, W) or (C, H, W); output (N, C, P, Q) or (C, P, Q), and with
        `return_indices` a second int64 tensor of that shape: the flat index of each maximum in
        its H x W plane.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """The mean of each window; `torch.nn.AvgPool2d`.

    Shape:
        input (N, C, H, W) or (C, H, W); output (N, C, P, Q) or (C, P, Q).
    """

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """Means over windows chosen to give `output_size`; `torch.nn.AdaptiveAvgPool2d`.

    Shape:
        input (N, C, H, W) or (C, H, W); output (N, C, *output_size) or (C, *output_size), where
        a None in `output_size` keeps the input's size.
    """

    def forward(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool2d(input, self.output_size)


class GlobalAvgPool2d(torch.nn.Module):
    """The mean of each channel; it has no parameters.

    Shape:
        input (N, C, H, W) or (C, H, W); output (N, C, 1, 1) or (C, 1, 1).

    Source: Lin, Chen, Yan, Network In Network, 2013, section 3.2.
    """

    def forward(self, input: Tensor) -> Tensor:
        return global_avg_pool2d(input)


class ResidualAdd(torch.nn.Module):
    """activation(input + shortcut), the end of a residual block in one op.

    Args:
        activation: None, "relu" or "sigmoid".

    Shape:
        input, shortcut and output all have one shape.

    Raises:
        ValueError: an unknown activation.

    Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, equation 1.
    """

    def __init__(self, activation: str | None = None) -> None:
        super().__init__()
        self.activation = _check_activation(activation)

    def forward(self, input: Tensor, shortcut: Tensor) -> Tensor:
        return residual_add(input, shortcut, self.activation)

    def extra_repr(self) -> str:
        return "" if self.activation is None else f"activation={self.activation}"
