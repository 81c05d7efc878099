"""The fully connected layer: views over the convolution of images of one pixel."""

from __future__ import annotations

from torch import Tensor

from .conv import conv2d


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """A fully connected layer: `conv1x1` of one pixel for each vector of the input.

    y[...,k] = act(sum_c x[...,c] * w[k,c] + bias[k] + residual[...,k])

    Args:
        input: (..., C), any number of leading dimensions, also none; the dtypes of `conv2d`.
        weight: (K, C), of the input's dtype.
        bias: (K) or None.
        residual: of the output's size, added before the activation.
        activation: None, "relu" or "sigmoid".

    Returns:
        (..., K).

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit, and a weight of one dimension.

    Source: `torch.nn.functional.linear`, whose arguments and results these are.
    """
    shape, size = input.shape, weight.shape
    if len(size) != 2 or not shape or shape[-1] != size[1]:
        raise RuntimeError(
            f"linear: expected input of size (..., C) and weight of size (K, C), got input of size "
            f"{list(shape)} and weight of size {list(size)}"
        )
    leading = shape[:-1]
    if residual is not None:
        if residual.shape != (*leading, size[0]):
            raise RuntimeError(
                f"linear: residual of size {list(residual.shape)} must have size "
                f"{[*leading, size[0]]}"
            )
        residual = _pixels(residual)
    weight = weight.view(*size, 1, 1)
    output = conv2d(_pixels(input), weight, bias, residual=residual, activation=activation)
    return output.reshape(*leading, size[0])


def _pixels(vectors: Tensor) -> Tensor:
    """(..., C) as images of one pixel, (M, C, 1, 1)."""
    if vectors.dim() != 2:
        vectors = vectors.flatten(0, -2) if vectors.dim() > 2 else vectors[None]
    return vectors.view(*vectors.shape, 1, 1)
