"""When a result is good: no further from the truth than twice as far as torch's own.

The truth is float64 (``reference.py`` or torch in float64, from the same rounded inputs). A fixed
tolerance is too loose for short sums and too tight for long ones; torch's own error in the same
dtype is the measure that grows with the problem. Winograd F(4,3) is held to ``factor=8`` and to
``assert_close``'s defaults.

The rule for one tensor: it has the truth's shape and the dtype asked for, its infinities and NaNs
are where the truth's are once rounded to that dtype, and over the other elements its relative rms
error is at most ``allowed_error``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

FACTORS = {"winograd": 8.0}  # on torch's own error, by algorithm of the planner; else FACTOR
FACTOR = 2.0


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """torch's switches of TF32 for convolutions and matrix products, on or off, then as before."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def factor_of(direction: str, *problem, **options) -> float:
    """The factor on torch's error for the algorithm that runs for `fastconv.explain`'s problem."""
    from ..explain import explain  # which imports the ops

    return FACTORS.get(explain(*problem, direction=direction, **options).algorithm, FACTOR)


def relative_rms(actual: Tensor, truth: Tensor) -> float:
    """sqrt(sum (actual - truth)^2 / sum truth^2) over the elements where the truth is finite.

    The absolute rms error where the truth is zero everywhere, 0 where there is nothing to compare,
    and infinite where ``actual`` is not finite although the truth is.
    """
    actual, truth = _float64(actual), _float64(truth)
    finite = truth.isfinite()
    count = int(finite.sum())
    if count == 0:
        return 0.0
    error = torch.linalg.vector_norm(torch.where(finite, actual - truth, 0.0)).item()
    if not math.isfinite(error):
        return math.inf
    scale = torch.linalg.vector_norm(torch.where(finite, truth, 0.0)).item() or math.sqrt(count)
    return error / scale


def allowed_error(
    torch_result: Tensor, truth: Tensor, dtype: torch.dtype, factor: float = FACTOR
) -> float:
    """max(factor * relative_rms(torch_result, truth), 4 eps of ``dtype``).

    Where torch's result overflowed and the truth did not, its error says nothing: only the floor
    remains.
    """
    floor = 4 * torch.finfo(dtype).eps
    torch_error = relative_rms(torch_result, _representable(truth, dtype))
    return max(factor * torch_error, floor) if math.isfinite(torch_error) else floor


def is_good(
    actual: Tensor, torch_result: Tensor, truth: Tensor, dtype: torch.dtype, factor: float = FACTOR
) -> bool:
    """Whether ``actual`` obeys the rule at the head of this file."""
    return explain(actual, torch_result, truth, dtype, factor) is None


def assert_good(
    actual: Tensor,
    torch_result: Tensor,
    truth: Tensor,
    dtype: torch.dtype,
    factor: float = FACTOR,
    name: str = "result",
) -> None:
    """AssertionError with the error, the allowed error and the worst element unless ``is_good``."""
    complaint = explain(actual, torch_result, truth, dtype, factor)
    assert complaint is None, f"{name}: {complaint}"


def explain(
    actual: Tensor, torch_result: Tensor, truth: Tensor, dtype: torch.dtype, factor: float = FACTOR
) -> str | None:
    """Why ``actual`` is not good, in one line; None if it is."""
    if torch_result.shape != truth.shape:
        raise ValueError(
            f"torch_result has shape {tuple(torch_result.shape)}, truth {tuple(truth.shape)}"
        )
    if actual.shape != truth.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    if actual.dtype != dtype:
        return f"dtype {actual.dtype}, expected {dtype}"
    actual, truth = _float64(actual), _representable(truth, dtype)

    finite = truth.isfinite() & actual.isfinite()
    misplaced = ~(finite | (actual == truth) | (actual.isnan() & truth.isnan()))
    if misplaced.any():
        place = tuple(misplaced.nonzero()[0].tolist())
        return (
            f"{int(misplaced.sum())} of {truth.numel()} elements differ in what is not finite, "
            f"the first at {place}: {actual[place].item()}, expected {truth[place].item():.9g}"
        )
    error, allowed = relative_rms(actual, truth), allowed_error(torch_result, truth, dtype, factor)
    if error <= allowed:
        return None
    distance = torch.where(finite, (actual - truth).abs(), 0.0)
    place = tuple(int(i) for i in torch.unravel_index(distance.argmax(), distance.shape))
    return (
        f"relative rms error {error:.3g}, allowed {allowed:.3g}; the worst element is at {place}: "
        f"{actual[place].item():.9g}, expected {truth[place].item():.9g}"
    )


def poison(tensor: Tensor) -> Tensor:
    """Fills ``tensor`` in place with NaN (integers: their largest value) and returns it.

    What a kernel forgets to write then shows. For memory that an op allocates itself, poison a
    tensor of the output's size and drop it just before the call: the allocator hands out the same
    bytes again.
    """
    floating = tensor.is_floating_point() or tensor.is_complex()
    return tensor.detach().fill_(math.nan if floating else torch.iinfo(tensor.dtype).max)


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _representable(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """The truth in float64, infinite where ``dtype`` overflows."""
    truth = _float64(truth)
    rounded = truth.to(dtype).double()
    return torch.where(rounded.isfinite(), truth, rounded)
