"""How an op of the native module gets gradients, fake kernels and vmap.

Every op is defined twice in csrc/ops.cpp: NAME, whose Autograd kernel is registered here, and
NAME_raw, which falls through it. Eager code calls the twin, or one `autograd.Function` over it;
traced graphs reach NAME and keep the twin. This costs 12 us with gradients where
`torch.library.register_autograd` costs 35. A backend that is not a device's own has the same pair
in a namespace of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function, forward_ad

from .. import _C
from ..backend import NAMESPACES, chosen, current_backend, has_triton, load_triton

Save = Callable[[Any, tuple, Any], None]
Backward = Callable[..., Any]
OPS: dict[str, Op] = {}


def public(name: str) -> Callable:
    """The differentiable op of a name on the current backend, as vmap rules call it."""
    return OPS[name].on(current_backend()).public


class _Face:
    """An op in one namespace of torch.ops, where it gets gradients, fake kernels and vmap."""

    def __init__(self, op: Op, backend: str | None) -> None:
        namespace = NAMESPACES.get(backend, "fastconv")
        names = op.name, op.name + "_raw"
        ops = getattr(torch.ops, namespace)
        self.public, self.raw = (getattr(ops, name).default for name in names)
        self.eager = self.transformed = None
        if op.backward is not None:
            self._make_functions(op, backend)
        library = torch.library.Library(namespace, "IMPL")
        twin = f"{namespace}::{names[1]}"  # Triton's comes with an Autograd kernel that passes on
        if not torch._C._dispatch_has_kernel_for_dispatch_key(twin, "Autograd"):
            library.impl(names[1], torch.library.fallthrough_kernel, "Autograd")
        library.impl(names[0], self._autograd_kernel, "Autograd")
        for name in names:
            each = f"{namespace}::{name}"
            torch.library.register_fake(each, op.fake, allow_override=True)
            if op.vmap is not None:
                torch.library.register_vmap(each, _within(backend, op.vmap))
        self._library = library  # what it registered lasts as long as this

    def _make_functions(self, op: Op, backend: str | None) -> None:
        raw, save, backward = self.raw, op.save, _within(backend, op.backward)

        class Eager(Function):
            @staticmethod
            def forward(ctx, *args):
                output = raw(*args)
                save(ctx, args, output)
                return output

        class Transformed(Function):  # torch.func's transforms need setup_context
            generate_vmap_rule = True

            @staticmethod
            def forward(*args):
                return raw(*args)

            setup_context = staticmethod(save)

        for function in (Eager, Transformed):
            function.backward = staticmethod(backward)
            function.__name__ = function.__qualname__ = op.name
        self.eager, self.transformed = Eager, Transformed

    def _needs_grad(self, args: tuple) -> bool:
        return torch.is_grad_enabled() and any(
            isinstance(a, torch.Tensor) and a.requires_grad for a in args
        )

    def _autograd_kernel(self, *args):
        if self.eager is not None and self._needs_grad(args):
            return self.eager.apply(*args)
        return self.raw(*args)

    def __call__(self, *args):
        if torch.compiler.is_compiling():
            return self.public(*args)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return self.public(*args) if self.transformed is None else self.transformed.apply(*args)
        # A dual tensor goes through the Function, which says that forward mode is not supported.
        if self.eager is not None and (self._needs_grad(args) or forward_ad._current_level >= 0):
            return self.eager.apply(*args)
        return self.raw(*args)


def _within(backend: str | None, function: Callable) -> Callable:
    """The function, run with the backend chosen: in autograd's threads, in a transform's rule."""
    if backend is None:
        return function

    def run(*args):
        with chosen(backend):
            return function(*args)

    return run


class Op:
    """A differentiable op: call it with exactly the arguments of its schema."""

    def __init__(
        self,
        name: str,
        fake: Callable,
        vmap: Callable | None = None,
        save: Save | None = None,
        backward: Backward | None = None,
    ) -> None:
        self.name, self.fake, self.vmap, self.save, self.backward = (
            name, fake, vmap, save, backward
        )  # fmt: skip
        OPS[name] = self
        self.of_device = _Face(self, None)
        self.elsewhere: dict[str, _Face] = {}  # by backend
        if not _C.cuda:
            _serve_cuda(name)

    def on(self, backend: str | None) -> _Face:
        """The op on a backend; on its tensors' device where that is not one of its own."""
        if backend not in NAMESPACES:
            return self.of_device
        if backend not in self.elsewhere:
            self.elsewhere[backend] = _Face(self, backend)
        return self.elsewhere[backend]

    def __call__(self, *args):
        if (backend := current_backend()) is None:
            return self.of_device(*args)
        if backend in ("cpu", "cuda") and args[0].device.type not in (backend, "meta"):
            raise RuntimeError(
                f"{self.name}: the backend {backend!r} was chosen, but the first operand is on "
                f"{args[0].device}"
            )
        return self.on(backend)(*args)


_cuda = torch.library.Library("fastconv", "IMPL")


def _serve_cuda(name: str) -> None:
    """Triton runs the op for CUDA tensors; it is imported when the first one comes."""

    def run(*args):
        return _on_triton(name, args)

    for each in (name, name + "_raw"):
        _cuda.impl(each, run, "CUDA")


def _on_triton(name: str, args: tuple):
    if not has_triton():
        raise NotImplementedError(
            f"{name}: fastconv was built without CUDA, as no CUDA toolkit (nvcc) was found, and "
            "the package triton, whose kernels would serve tensors on CUDA, is not installed"
        )
    load_triton()
    return getattr(torch.ops.fastconv_triton, name + "_raw")(*args)
