"""Replace torch.nn's layers in a model by fastconv's: a new tree over the same parameters."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn.modules import conv, pooling
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from . import nn

__all__ = ["Entry", "Report", "convert"]

# The exact type of a layer and what replaces it.
_REPLACEMENTS = {
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.MaxPool2d: nn.MaxPool2d,
    torch.nn.AvgPool2d: nn.AvgPool2d,
    torch.nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool2d,
    torch.nn.Linear: nn.Linear,
}

# Layers of the same families that a user may expect to be replaced.
_RELATED = (
    conv._ConvNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AvgPoolNd,
    pooling._LPPoolNd,
    pooling._MaxPoolNd,
    pooling._MaxUnpoolNd,
    pooling.AvgPool2d,
    pooling.AvgPool3d,
    pooling.FractionalMaxPool2d,
    pooling.FractionalMaxPool3d,
    torch.nn.Linear,
)

# torch's modules whose forward is tied to the very objects they wrap.
_WRAPPERS = {
    "ScriptModule": "TorchScript: convert before torch.jit",
    "OptimizedModule": "compiled: convert before torch.compile",
    "DistributedDataParallel": "distributed: convert before wrapping",
    "FullyShardedDataParallel": "distributed: convert before wrapping",
}

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_CONTAINERS = (list, tuple, set, dict, OrderedDict)

# What torch.nn.Module itself keeps on every instance: hooks, parameters, buffers, flags.
_BOOKKEEPING = frozenset(vars(torch.nn.Module()))


class Entry(NamedTuple):
    """One layer: its first name in the tree ("" for the root), its class, why it was left."""

    name: str
    type: str
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What `convert` did: the layers it replaced and the ones it left as they are."""

    converted: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("converted", *entry) for entry in self.converted]
        rows += [("left", *entry) for entry in self.left]
        rows = [("", "name", "type", "reason"), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def convert(
    module: torch.nn.Module, *, return_report: bool = False
) -> torch.nn.Module | tuple[torch.nn.Module, Report]:
    """A new model with fastconv's layers in place of torch.nn's, over the same parameters.

    Every module of the tree becomes a new object: Conv2d, MaxPool2d, AvgPool2d,
    AdaptiveAvgPool2d and Linear (exact types) of fastconv's class, every other of its own class.
    Parameters, buffers and other attributes are shared with `module`; names, hooks and each
    layer's training flag are copied; a module that appears twice appears twice. `module` itself,
    its classes, tree and hooks, is not changed, and a root that is a layer comes back as a new
    layer.

    An attribute or hook that refers to modules of the tree, directly, by a list, tuple, dict or
    set, as a bound method, a functools.partial, a weak reference or a hook's handle, refers to the
    new ones in the copy. What cannot be followed keeps referring to the originals: closures, and
    objects of other classes. A module that only an attribute holds, not registered as a child, is
    shared as it is and reported. TorchScript, compiled and distributed wrappers are tied to what
    they wrap: model and copy share them. Calls of torch.nn.functional inside a forward stay.

    Since the parameters are one, an optimizer over either model trains both, and moving or casting
    one moves the parameters of both but the buffers of one: convert after `.to(...)`. A model on
    which `module.compile()` was called loses that in the copy: compile the copy.

    Args:
        module: any torch.nn.Module.
        return_report: return (model, report) instead; print the report to read it.

    Raises:
        TypeError: `module` is not a torch.nn.Module.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    conversion = _Conversion(module)
    result = conversion.new[id(module)]
    return (result, conversion.report) if return_report else result


def _wrapper_reason(module: torch.nn.Module) -> str | None:
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.") and cls.__name__ in _WRAPPERS:
            return _WRAPPERS[cls.__name__]
    return None


def _layer_reason(module: torch.nn.Module) -> str | None:
    """Why a layer is left: None where it is replaced, "" where it is none of our business."""
    cls = type(module)
    if not isinstance(module, _RELATED) or cls in _REPLACEMENTS.values():
        return ""
    if is_parametrized(module):
        return "parametrized"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "lazy: run it once before converting"
    if cls in _REPLACEMENTS:
        return _instance_reason(module)
    for base in _REPLACEMENTS:
        if isinstance(module, base):
            return f"a subclass of {base.__name__}, which may compute something else"
    return f"fastconv has no {cls.__name__}"


def _instance_reason(module: torch.nn.Module) -> str | None:
    for name in ("forward", "_conv_forward"):
        if name in vars(module):
            return f"{name} was replaced on the instance"
    for name, tensor in module.named_parameters(recurse=False):
        if type(tensor) not in (torch.nn.Parameter, torch.Tensor):
            return f"{name} is a {type(tensor).__name__}"
        if tensor.dtype not in _DTYPES:
            return f"{name} has dtype {tensor.dtype}"
    return None


def _walk(
    module: torch.nn.Module, name: str, seen: set[int]
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Each module once, under its first name; what a wrapper wraps is its own affair."""
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    if _wrapper_reason(module) is None:
        for key, child in module._modules.items():
            if child is not None:
                yield from _walk(child, f"{name}.{key}" if name else key, seen)


class _Conversion:
    """One call of `convert`: an empty object for each module first, then what fills it."""

    def __init__(self, root: torch.nn.Module) -> None:
        self.report = Report()
        self.new: dict[int, Any] = {}  # id of a module, dict of hooks or container -> its copy
        self._seen: set[int] = set()
        copied = []
        for name, old in _walk(root, "", self._seen):
            self.new[id(old)] = new = self._empty(name, old)
            if new is not old:
                copied.append((name, old, new))
        for _, old, new in copied:
            self._copy_bookkeeping(old, new)
        for name, old, new in copied:
            self._copy_attributes(name, old, new)

    def _empty(self, name: str, old: torch.nn.Module) -> torch.nn.Module:
        cls = type(old)
        wrapper = _wrapper_reason(old)
        reason = _layer_reason(old) if wrapper is None else wrapper
        if reason is None:
            self.report.converted.append(Entry(name, cls.__name__))
            cls = _REPLACEMENTS[cls]
        elif reason:
            self.report.left.append(Entry(name, cls.__name__, reason))
        if wrapper is not None:
            return old
        if isinstance(old, torch.fx.GraphModule):  # each one has a class of its own
            return cls.__new__(cls)
        return object.__new__(cls)

    def _copy_bookkeeping(self, old: torch.nn.Module, new: torch.nn.Module) -> None:
        for key in _BOOKKEEPING & vars(old).keys():
            value = vars(old)[key]
            new.__dict__[key] = copy.copy(value)
            if isinstance(value, dict):
                self.new[id(value)] = new.__dict__[key]

    def _copy_attributes(self, name: str, old: torch.nn.Module, new: torch.nn.Module) -> None:
        attributes = new.__dict__
        for key, value in vars(old).items():
            where = f"{name}.{key}" if name else key
            if key == "_modules" or key.endswith("_hooks") and key in _BOOKKEEPING:
                for index, item in value.items():
                    attributes[key][index] = self._follow(item, new, where)
            elif key not in _BOOKKEEPING:
                attributes[key] = self._follow(value, new, where)
        if hasattr(new, "activation") and not hasattr(old, "activation"):
            attributes["activation"] = None  # of the layer itself: where kept weights look
        attributes.pop("_weight_cache", None)  # each layer keeps its own
        attributes.pop("_compiled_call_impl", None)  # it calls the original
        if isinstance(old, torch.fx.GraphModule):
            new.graph = copy.deepcopy(old.graph)  # also writes the forward of the new class

    def _follow(self, value: Any, owner: torch.nn.Module, where: str) -> Any:
        """`value` with the tree's modules replaced by their copies, itself where it has none."""
        if id(value) in self.new:
            return self.new[id(value)]
        if isinstance(value, torch.nn.Module):
            return self._report_unregistered(value, where)
        cls = type(value)
        if cls in _CONTAINERS:
            self.new[id(value)] = value  # a container may hold itself
            self.new[id(value)] = result = self._follow_container(value, owner, where)
            return result
        if cls is types.MethodType:
            target = self.new.get(id(value.__self__), value.__self__)
            return value if target is value.__self__ else types.MethodType(value.__func__, target)
        if cls is functools.partial:
            parts = (value.func, value.args, value.keywords)
            followed = [self._follow(part, owner, where) for part in parts]
            if all(a is b for a, b in zip(followed, parts, strict=True)):
                return value
            func, args, keywords = followed
            result = functools.partial(func, *args, **keywords)
            result.__dict__.update(value.__dict__)
            return result
        if cls is weakref.ReferenceType and id(value()) in self.new:
            return weakref.ref(self.new[id(value())])
        if cls is _WrappedHook:
            hook = self._follow(value.hook, owner, where)
            return _WrappedHook(hook, owner if value.with_module else None)
        if cls is RemovableHandle:
            return self._follow_handle(value)
        return value

    def _follow_container(self, value: Any, owner: torch.nn.Module, where: str) -> Any:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        pairs = [(key, item, self._follow(item, owner, where)) for key, item in pairs]
        if all(new is old for _, old, new in pairs):
            return value
        if isinstance(value, dict):
            return type(value)((key, new) for key, _, new in pairs)
        return type(value)(new for _, _, new in pairs)

    def _follow_handle(self, handle: RemovableHandle) -> RemovableHandle:
        """A handle that removes the hook from the copy; the original's is left alone."""
        hooks = self.new.get(id(handle.hooks_dict_ref()))
        if hooks is None:
            return handle
        others = [ref() for ref in handle.extra_dict_ref]
        result = RemovableHandle.__new__(RemovableHandle)
        result.__setstate__(
            (hooks, handle.id, [self.new.get(id(other), other) for other in others])
        )
        return result

    def _report_unregistered(self, module: torch.nn.Module, where: str) -> torch.nn.Module:
        for name, layer in _walk(module, where, self._seen):
            if _layer_reason(layer) is None:
                entry = Entry(name, type(layer).__name__, "not registered as a child module")
                self.report.left.append(entry)
        return module
