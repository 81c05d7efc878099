"""How an op of the native module gets gradients, fake kernels and vmap.

Every op is defined twice in csrc/ops.cpp: NAME, whose Autograd kernel is registered here, and
NAME_raw, which falls through it. Eager code calls the twin, or one `autograd.Function` over it;
traced graphs reach NAME and keep the twin. This costs 12 us with gradients where
`torch.library.register_autograd` costs 35.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function, forward_ad

from .. import _C  # noqa: F401  registers torch.ops.fastconv
from ..backend import NAMESPACES, chosen, current_backend

_library = torch.library.Library("fastconv", "IMPL")

Save = Callable[[Any, tuple, Any], None]
Backward = Callable[..., Any]


def _functions(raw: Any, save: Save, backward: Backward, name: str) -> tuple[type, type]:
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

    choice = current_backend()

    def backward_of(ctx, *grads):
        with chosen(choice):  # it may run in a thread of autograd's
            return backward(ctx, *grads)

    for function in (Eager, Transformed):
        function.backward = staticmethod(backward if choice is None else backward_of)
        function.__name__ = function.__qualname__ = name
    return Eager, Transformed


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
        self.name = name
        self.public = getattr(torch.ops.fastconv, name).default
        self.raw = getattr(torch.ops.fastconv, name + "_raw").default
        self.gradient = (save, backward)
        self.eager = self.transformed = None
        if backward is not None:
            self.eager, self.transformed = _functions(self.raw, save, backward, name)
        self.elsewhere: dict[str, Callable] = {}  # backend -> the op on it
        _library.impl(name + "_raw", torch.library.fallthrough_kernel, "Autograd")
        _library.impl(name, self._autograd_kernel, "Autograd")
        for each in (f"fastconv::{name}", f"fastconv::{name}_raw"):
            torch.library.register_fake(each, fake)
            if vmap is not None:
                torch.library.register_vmap(each, vmap)

    def _needs_grad(self, args: tuple) -> bool:
        return torch.is_grad_enabled() and any(
            isinstance(a, torch.Tensor) and a.requires_grad for a in args
        )

    def _autograd_kernel(self, *args):
        if self.eager is not None and self._needs_grad(args):
            return self.eager.apply(*args)
        return self.raw(*args)

    def _on(self, backend: str) -> Callable:
        """The op on a backend that was chosen; those that are not a device's own are eager only."""
        if backend not in NAMESPACES:
            return self._of_device
        if backend not in self.elsewhere:
            raw = getattr(getattr(torch.ops, NAMESPACES[backend]), self.name + "_raw").default
            save, backward = self.gradient
            eager = raw if backward is None else _functions(raw, save, backward, self.name)[0].apply
            self.elsewhere[backend] = lambda *args: (eager if self._needs_grad(args) else raw)(
                *args
            )
        return self.elsewhere[backend]

    def __call__(self, *args):
        if (backend := current_backend()) is None:
            return self._of_device(*args)
        if backend in ("cpu", "cuda") and args[0].device.type not in (backend, "meta"):
            raise RuntimeError(
                f"{self.name}: the backend {backend!r} was chosen, but the first operand is on "
                f"{args[0].device}"
            )
        return self._on(backend)(*args)

    def _of_device(self, *args):
        if torch.compiler.is_compiling():
            return self.public(*args)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return self.public(*args) if self.transformed is None else self.transformed.apply(*args)
        # A dual tensor goes through the Function, which says that forward mode is not supported.
        if self.eager is not None and (self._needs_grad(args) or forward_ad._current_level >= 0):
            return self.eager.apply(*args)
        return self.raw(*args)
