"""Packed weights kept between calls: what a convolution layer in eval mode does not do again.

A CPU kernel reads weights in an order of its own, and Winograd reads them transformed. A layer in
eval mode keeps them as long as its weight is the same tensor, of the same address and version
counter, and no gradient is asked for. They are dropped by `train`, `eval`, `to`,
`load_state_dict`, and by `clear_cache` for writes that bump no version (`weight.data`, a numpy
view).
"""

from __future__ import annotations

import os
import weakref

import torch
from torch import Tensor

from . import _C
from .ops.sizes import (
    activation_code,
    conv_padding,
    conv_shape,
    empty,
    pair,
)

_pack = torch.ops.fastconv.conv2d_pack.default
_packed = torch.ops.fastconv.conv2d_packed.default
_HEAD = 64  # elements that say what is packed: csrc/cpu/conv.cpp
_LARGEST = 2**24  # number of a window that the head holds
_PROBLEMS = 64  # remembered by a layer; those that agree in their head share one tensor
_caches: weakref.WeakSet[WeightCache] = weakref.WeakSet()


@torch.library.register_fake("fastconv::conv2d_packed")
def _packed_fake(input, weight, packed, bias, residual, height, width, activation):
    return empty(input, [input.shape[0], weight.shape[0], height, width])


def _limit() -> int:
    value = os.environ.get("FASTCONV_CACHE", "1024")
    try:
        return int(value) * 2**20
    except ValueError:
        raise ValueError(f"FASTCONV_CACHE must be a number of megabytes, got {value!r}") from None


class WeightCache:
    """The packed weights of one layer."""

    def __init__(self, weight: Tensor) -> None:
        self.address, self.version = weight.data_ptr(), weight._version
        # problem -> packed weights, the output's height and width
        self.problems: dict[tuple, tuple[Tensor, int, int]] = {}
        _caches.add(self)

    def holds(self, weight: Tensor) -> bool:
        return (
            self.address == weight.data_ptr()
            and not weight.is_inference()  # it has no version counter
            and self.version == weight._version
        )

    def tensors(self) -> list[Tensor]:
        return list({id(t): t for t, *_ in self.problems.values()}.values())

    def add(self, problem: tuple, weight: Tensor, input: Tensor, window: tuple) -> bool:
        """Packs the weights for a problem; False where they are past the limit."""
        if max(window) > _LARGEST:
            return False
        if len(self.problems) >= _PROBLEMS:
            self.problems.clear()
        packed = _pack(input, weight, *window)
        for other in self.tensors():
            if other.shape == packed.shape and torch.equal(other[:_HEAD], packed[:_HEAD]):
                packed = other
                break
        else:
            if cache_size() + packed.nbytes > _limit():
                return False
        size = conv_shape(input.shape, weight.shape, window)
        self.problems[problem] = packed, size[2], size[3]
        return True


def cached_conv2d(
    layer: torch.nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None, residual
) -> Tensor | None:
    """The layer's output by its packed weights; None where they do not serve this call."""
    if torch.compiler.is_dynamo_compiling() or not _C.eager_plain(input, weight, bias, residual):
        return None
    attributes = layer.__dict__
    cache = attributes.get("_weight_cache")
    if cache is None or not cache.holds(weight):
        if not (input.is_cpu and weight.is_cpu) or weight.is_inference():
            return None
        cache = attributes["_weight_cache"] = WeightCache(weight)
    problem = (
        input.shape, input.stride(), input.dtype,
        layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode,
    )  # fmt: skip
    found = cache.problems.get(problem)
    if found is None:
        fits = input.dim() == 4 and input.dtype == weight.dtype and layer.padding_mode == "zeros"
        if not fits or _limit() == 0:
            return None
        stride, dilation = pair(layer.stride, "stride"), pair(layer.dilation, "dilation")
        pads = conv_padding(layer.padding, weight.shape[2:], stride, dilation)
        if not cache.add(problem, weight, input, (*stride, *pads, *dilation, layer.groups)):
            return None
        found = cache.problems[problem]
    packed, height, width = found
    activation = activation_code(layer.activation)
    output = _C.eager_conv2d_packed(
        input, weight, bias, residual, packed, height, width, activation
    )
    if output is not None:
        return output
    return _packed(input, weight, packed, bias, residual, height, width, activation)


def clear_cache(module: torch.nn.Module) -> None:
    """Drops the packed weights of every layer of `module`.

    Needed after writes to a weight that bump no version counter: through `weight.data` or a numpy
    view of it. Everything else is noticed.
    """
    for each in module.modules():
        each.__dict__.pop("_weight_cache", None)


def forget() -> None:
    """Drops the packed weights of every layer of the process: the algorithms have changed."""
    for cache in list(_caches):
        cache.problems.clear()


def cache_size(module: torch.nn.Module | None = None) -> int:
    """Bytes of packed weights that `module` keeps, or by default every layer of the process."""
    if module is None:
        caches = list(_caches)
    else:
        found = (each.__dict__.get("_weight_cache") for each in module.modules())
        caches = [cache for cache in found if cache is not None]
    return sum(t.nbytes for cache in caches for t in cache.tensors())
