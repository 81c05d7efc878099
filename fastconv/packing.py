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
from operator import is_not

import torch
from torch import Tensor

from . import _C
from .ops.sizes import conv_padding, conv_shape, empty, pair

_pack = torch.ops.fastconv.conv2d_pack.default
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
    """The packed weights of one layer, as csrc/eager_conv.cpp looks them up."""

    def __init__(self, head: tuple) -> None:
        self.head = head
        # What names a problem -> packed weights, the output's height and width; or None: no room.
        self.problems: dict[bytes, tuple[Tensor, int, int] | None] = {}
        _caches.add(self)

    def tensors(self) -> list[Tensor]:
        kept = [found[0] for found in list(self.problems.values()) if found]  # threads may add
        return list({id(packed): packed for packed in kept}.values())

    def add(self, problem: bytes, weight: Tensor, input: Tensor, window: tuple) -> bool:
        """Packs the weights for a problem; False where they are past the limit."""
        if len(self.problems) >= _PROBLEMS:
            self.problems.clear()
        packed = _pack(input, weight, *window)
        for other in self.tensors():
            if other.shape == packed.shape and torch.equal(other[:_HEAD], packed[:_HEAD]):
                packed = other
                break
        else:
            if cache_size() + packed.nbytes > _limit():
                self.problems[problem] = None
                return False
        size = conv_shape(input.shape, weight.shape, window)
        self.problems[problem] = packed, size[2], size[3]
        return True


def _head(layer: torch.nn.Conv2d) -> tuple:
    """What a layer's packed weights depend on: the weight as it is, and the layer's settings."""
    weight = layer.weight
    return (
        weight.data_ptr(), weight._version,
        layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode,
    )  # fmt: skip


def _keep(layer: torch.nn.Conv2d, problem: bytes, input: Tensor) -> bool:
    """Packs the weights for a problem that csrc/eager_conv.cpp has not found; whether it will."""
    weight = layer.weight
    fits = input.dtype == weight.dtype and layer.padding_mode == "zeros"
    if not fits or weight.is_inference() or _limit() == 0:  # those have no version counter
        return False
    stride, dilation = pair(layer.stride, "stride"), pair(layer.dilation, "dilation")
    pads = conv_padding(layer.padding, weight.shape[2:], stride, dilation)
    window = (*stride, *pads, *dilation, layer.groups)
    if max(window) > _LARGEST:
        return False
    cache, head = layer.__dict__.get("_weight_cache"), _head(layer)
    # By identity, as it is looked up: settings that are equal only would never be found.
    if cache is None or cache.head[:2] != head[:2] or any(map(is_not, cache.head[2:], head[2:])):
        cache = layer.__dict__["_weight_cache"] = WeightCache(head)
    return cache.add(problem, weight, input, window)


def kept_conv2d(layer: torch.nn.Conv2d, input: Tensor, residual: Tensor | None) -> Tensor | None:
    """The layer's output by its packed weights; None where they do not serve this call."""
    if torch.compiler.is_dynamo_compiling():
        return None
    output = _C.eager_kept_conv2d(layer.__dict__, input, residual)
    if type(output) is bytes and _keep(layer, output, input):
        output = _C.eager_kept_conv2d(layer.__dict__, input, residual)
    return None if type(output) is bytes else output  # another thread may have dropped it


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
