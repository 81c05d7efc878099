"""Naive float64 references of every op, with the ops' signatures.

Each one is its defining sum written over the kernel's taps: plain slices and one einsum a tap, in
float64 whatever the inputs' dtype, and no convolution or pooling of torch's. They are the truth
that kernels are held to (``compare.py``), so they are written to be read, not to be quick;
arguments are not validated.

Letters: N batch, C input channels, H W input size, K output channels, R S kernel size, P Q output
size, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Pair = int | Sequence[int]


def pair(value: Pair) -> tuple[int, int]:
    """``3`` and ``(3,)`` are ``(3, 3)``, as torch reads them."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 2 if len(values) == 1 else values  # type: ignore[return-value]


def four_dims(tensor: Tensor) -> Tensor:
    """float64, with a batch axis: (C, H, W) becomes (1, C, H, W)."""
    tensor = tensor.detach().double()
    return tensor if tensor.dim() == 4 else tensor.unsqueeze(0)


def like_batch(result: Tensor, tensor: Tensor) -> Tensor:
    """``result`` without its batch axis where ``tensor`` had none."""
    return result if tensor.dim() == 4 else result.squeeze(0)


def activate(x: Tensor, activation: str | None) -> Tensor:
    """The activation of the fused sentence: None, "relu" (NaN stays NaN) or "sigmoid"."""
    functions = {None: lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid}
    return functions[activation](x)


def frame(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """``x`` (N, C, H, W) within a frame of ``value``: pads = ((top, bottom), (left, right))."""
    (top, bottom), (left, right) = pads
    n, c, h, w = x.shape
    framed = x.new_full((n, c, top + h + bottom, left + w + right), value)
    framed[:, :, top : top + h, left : left + w] = x
    return framed


def taps(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    output: Sequence[int],
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields (r, s, view): view[..., p, q] = x[..., p*stride + r*dil, q*stride + s*dil]."""
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            first = r * dilation[0], s * dilation[1]
            rows, columns = (
                slice(
                    first[axis], first[axis] + (output[axis] - 1) * stride[axis] + 1, stride[axis]
                )
                for axis in (0, 1)
            )
            yield r, s, x[..., rows, columns]


# ---------------------------------------------------------------------------------- convolution


def conv_pads(padding: Pair | str, kernel: Sequence[int], dilation: Sequence[int]):
    """((top, bottom), (left, right)); "same" adds dilation * (k - 1), the odd one at the end."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in pair(padding))


def conv_sizes(size, kernel, stride, pads, dilation) -> tuple[int, ...]:
    """(P, Q): floor((size + both pads - dilation * (kernel - 1) - 1) / stride) + 1."""
    return tuple(
        (size[i] + sum(pads[i]) - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """activation(b[k] + residual + sum_{c,r,s} x[n, c, p*stride + r*dil - pad, ...] * w[k,c,r,s]).

    input (N, C, H, W) or (C, H, W), weight (K, C/G, R, S), bias (K), residual as the output (N, K,
    P, Q).
    """
    x, w = four_dims(input), weight.detach().double()
    kernel, stride, dilation = w.shape[2:], pair(stride), pair(dilation)
    pads = conv_pads(padding, kernel, dilation)
    sizes = conv_sizes(x.shape[2:], kernel, stride, pads, dilation)
    x = frame(x, pads).unflatten(1, (groups, w.shape[1]))
    w = w.unflatten(0, (groups, w.shape[0] // groups))
    y = x.new_zeros(x.shape[0], groups, w.shape[1], *sizes)
    for r, s, view in taps(x, kernel, stride, dilation, sizes):
        y += torch.einsum("ngcpq,gkc->ngkpq", view, w[..., r, s])
    y = y.flatten(1, 2)
    if bias is not None:
        y = y + bias.detach().double().view(-1, 1, 1)
    if residual is not None:
        y = y + four_dims(residual)
    return like_batch(activate(y, activation), input)


def conv1x1(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, **epilogue: Any
) -> Tensor:
    """``conv2d`` with a weight of (K, C) or (K, C, 1, 1)."""
    return conv2d(input, weight.reshape(*weight.shape[:2], 1, 1), bias, stride, **epilogue)


def convolve2d(input: Tensor, weight: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    """True convolution: ``conv2d`` with the kernel flipped in both axes; the same arguments."""
    return conv2d(input, weight.flip(-2, -1), *arguments, **keywords)


def conv2d_input_grad(
    input_size: Sequence[int],
    weight: Tensor,
    grad_output: Tensor,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """dx[n, c, p*stride + r*dil - pad, ...] = sum over k,r,s,p,q of dy[n,k,p,q] * w[k,c,r,s].

    The arguments of ``torch.nn.grad.conv2d_input``; every tap adds into the places that it read
    from.
    """
    dy, w = four_dims(grad_output), weight.detach().double()
    kernel, stride, dilation = w.shape[2:], pair(stride), pair(dilation)
    pads = conv_pads(padding, kernel, dilation)
    h, w_size = input_size[-2:]
    dx = frame(dy.new_zeros(dy.shape[0], groups * w.shape[1], h, w_size), pads)
    dy = dy.unflatten(1, (groups, w.shape[0] // groups))
    w = w.unflatten(0, (groups, w.shape[0] // groups))
    for r, s, view in taps(dx, kernel, stride, dilation, dy.shape[-2:]):
        view += torch.einsum("ngkpq,gkc->ngcpq", dy, w[..., r, s]).flatten(1, 2)
    (top, _), (left, _) = pads
    return dx[:, :, top : top + h, left : left + w_size].reshape(tuple(input_size))


def conv2d_weight_grad(
    input: Tensor,
    weight_size: Sequence[int],
    grad_output: Tensor,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """dw[k, c, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, c, p*stride + r*dil - pad, ...].

    The arguments of ``torch.nn.grad.conv2d_weight``.
    """
    x, dy = four_dims(input), four_dims(grad_output)
    kernel, stride, dilation = weight_size[2:], pair(stride), pair(dilation)
    x = frame(x, conv_pads(padding, kernel, dilation)).unflatten(1, (groups, weight_size[1]))
    dy = dy.unflatten(1, (groups, weight_size[0] // groups))
    dw = x.new_zeros(tuple(weight_size))
    for r, s, view in taps(x, kernel, stride, dilation, dy.shape[-2:]):
        dw[:, :, r, s] = torch.einsum("ngkpq,ngcpq->gkc", dy, view).flatten(0, 1)
    return dw


# -------------------------------------------------------------------------------------- pooling


def pool_sizes(size, kernel, stride, padding, dilation=(1, 1), ceil_mode=False) -> tuple[int, ...]:
    """(P, Q); ``ceil_mode`` rounds up, but no window starts beyond the input and its first pad."""

    def one(size: int, k: int, s: int, pad: int, d: int) -> int:
        room = size + 2 * pad - d * (k - 1) - 1
        if not ceil_mode:
            return room // s + 1
        windows = -(-room // s) + 1
        return windows - 1 if (windows - 1) * s >= size + pad else windows

    return tuple(one(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1))


def pool_pads(size, output, kernel, stride, padding, dilation=(1, 1)):
    """Pads that hold every window whole, those that ``ceil_mode`` lets over the edge too."""

    def end(i: int) -> int:
        last = (output[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1
        return max(last - padding[i] - size[i], 0)

    return (padding[0], end(0)), (padding[1], end(1))


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y[n, c, p, q] = max over (r, s) of x; the pads never win.

    The first maximum of a window wins ties and NaN beats every number (the last NaN of a window
    gives the index). Indices are h*W + w within the plane; a window of -inf points at its first
    place inside the input, one wholly in the padding (dilation can make one) at 0.
    """
    x = four_dims(input)
    kernel, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
    stride = kernel if stride is None or stride == () or stride == [] else pair(stride)
    size = x.shape[2:]
    sizes = pool_sizes(size, kernel, stride, padding, dilation, ceil_mode)
    pads = pool_pads(size, sizes, kernel, stride, padding, dilation)
    plane = torch.arange(size[0] * size[1], dtype=torch.float64, device=x.device)
    places = frame(plane.view(1, 1, *size), pads, value=-1.0)

    best = x.new_full((*x.shape[:2], *sizes), -torch.inf)
    index = torch.full_like(best, -1)
    values = taps(frame(x, pads, value=-torch.inf), kernel, stride, dilation, sizes)
    for (_, _, value), (_, _, place) in zip(
        values, taps(places, kernel, stride, dilation, sizes), strict=True
    ):
        wins = (place >= 0) & ((index < 0) | (value > best) | value.isnan())
        best = torch.where(wins, value, best)
        index = torch.where(wins, place, index)
    best, index = like_batch(best, input), like_batch(index.clamp(min=0).long(), input)
    return (best, index) if return_indices else best


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """y[n, c, p, q] = (sum of x over the window) / divisor.

    The divisor is ``divisor_override``, or the number of places of the window inside the padded
    input (``count_include_pad``) or inside the input. What ``ceil_mode`` adds beyond the padding
    never counts.
    """
    x = four_dims(input)
    kernel, padding = pair(kernel_size), pair(padding)
    stride = kernel if stride is None or stride == () or stride == [] else pair(stride)
    sizes = pool_sizes(x.shape[2:], kernel, stride, padding, ceil_mode=ceil_mode)
    pads = pool_pads(x.shape[2:], sizes, kernel, stride, padding)

    counted = x.new_ones(1, 1, *x.shape[2:])
    if count_include_pad:
        symmetric = tuple(
            (min(p, low), min(p, high)) for p, (low, high) in zip(padding, pads, strict=True)
        )
        beyond = tuple((0, high - p) for (_, high), (_, p) in zip(pads, symmetric, strict=True))
        counted = frame(frame(counted, symmetric, value=1.0), beyond)
    else:
        counted = frame(counted, pads)

    def window_sums(plane: Tensor) -> Tensor:
        return sum(view for _, _, view in taps(plane, kernel, stride, (1, 1), sizes))

    total = window_sums(frame(x, pads))
    return like_batch(total / (divisor_override or window_sums(counted)), input)


def adaptive_avg_pool2d(input: Tensor, output_size: int | None | Sequence[int | None]) -> Tensor:
    """y[n, c, p, q] = mean of rows floor(p*H/P) to ceil((p+1)*H/P) and the same of the columns.

    A None in ``output_size`` keeps the input's size.
    """
    x = four_dims(input)
    wanted = output_size if isinstance(output_size, Sequence) else (output_size,)
    wanted = tuple(wanted) * 2 if len(wanted) == 1 else wanted
    sizes = [size if want is None else want for want, size in zip(wanted, x.shape[2:], strict=True)]

    def averages(x: Tensor, axis: int, count: int) -> Tensor:
        size = x.shape[axis]
        bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        means = [x.narrow(axis, low, high - low).mean(axis) for low, high in bounds]
        return torch.stack(means, axis) if means else x.narrow(axis, 0, 0)

    return like_batch(averages(averages(x, 2, sizes[0]), 3, sizes[1]), input)


def global_avg_pool2d(input: Tensor) -> Tensor:
    """y[n, c, 0, 0] = mean of the plane."""
    return adaptive_avg_pool2d(input, 1)


def residual_add(input: Tensor, shortcut: Tensor, activation: str | None = None) -> Tensor:
    """activation(input + shortcut)."""
    return activate(input.detach().double() + shortcut.detach().double(), activation)
