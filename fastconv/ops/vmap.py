"""vmap rules: where the mapped axis of an op's tensors goes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .registry import public


def to_batch(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """(N, …) and a mapped axis to (size * N, …); an unmapped tensor is repeated."""
    if t is None:
        return None
    t = t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.flatten(0, 1)


def to_channels(t: Tensor | None, dim: int | None, size: int, axis: int) -> Tensor | None:
    """(…, X, …) at `axis` to (…, size * X, …)."""
    if t is None:
        return None
    if dim is None:
        t = t.unsqueeze(axis).expand(*t.shape[:axis], size, *t.shape[axis:])
    else:
        t = t.movedim(dim, axis)
    return t.flatten(axis, axis + 1)


def fold_batch(name: str) -> Callable:
    """The rule of op `name`: the mapped axis of every tensor argument joins the batch."""

    def rule(info, in_dims, *args):
        size = info.batch_size
        output = public(name)(
            *(
                to_batch(a, dim, size) if isinstance(a, Tensor) else a
                for a, dim in zip(args, in_dims, strict=True)
            )
        )
        if isinstance(output, Tensor):
            return output.unflatten(0, (size, output.shape[0] // size)), 0
        return tuple(y.unflatten(0, (size, y.shape[0] // size)) for y in output), (0,) * len(output)

    return rule
