"""Registers torch.ops.fastconv_triton: the names and schemas of torch.ops.fastconv."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from ..backend import NAMESPACES
from ..ops.registry import OPS
from . import add, conv, conv_grad, pool
from .launch import INTERPRETING

_library = torch.library.Library("fastconv_triton", "DEF")


def register() -> None:
    """Defines every op and its raw twin, once, and makes them a backend."""
    for name, op in OPS.items():
        fill = next(getattr(m, name) for m in (conv, conv_grad, pool, add) if hasattr(m, name))
        _define(name, op.fake, fill)
    NAMESPACES["triton"] = "fastconv_triton"
    for op in OPS.values():
        op.on("triton")  # now, since a compiled function cannot register it


def _define(name: str, fake: Callable, fill: Callable) -> None:
    """NAME_raw as a triton_op, which tracing sees through; where Triton interprets, a custom_op.

    `fake` checks the arguments and makes the outputs, `fill` runs the kernels.
    """
    schema = getattr(torch.ops.fastconv, name).default._schema

    def run(*args):
        _check_device(name, args[0])
        outputs = fake(*args)
        fill(outputs, *args)
        return outputs

    run.__name__ = name
    run.__signature__ = _signature(schema)
    make = torch.library.custom_op if INTERPRETING else torch.library.triton_op
    make(f"fastconv_triton::{name}_raw", run, mutates_args=())
    _library.define(str(schema).removeprefix("fastconv::"))
    raw = getattr(torch.ops.fastconv_triton, name + "_raw").default
    _library.impl(name, lambda *args: raw(*args), "CompositeExplicitAutograd")


def _signature(schema) -> inspect.Signature:
    """That of a function with the schema's arguments and results, for torch to infer it from."""
    types = {"Tensor": Tensor, "Optional[Tensor]": Tensor | None}
    parameters = [
        inspect.Parameter(
            a.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=types.get(str(a.type), int)
        )
        for a in schema.arguments
    ]
    several = len(schema.returns) > 1
    result = tuple[(Tensor,) * len(schema.returns)] if several else Tensor
    return inspect.Signature(parameters, return_annotation=result)


def _check_device(name: str, tensor: Tensor) -> None:
    if type(tensor) is Tensor and not tensor.is_cuda and not INTERPRETING:
        raise RuntimeError(
            f"{name}: the Triton backend takes tensors of {tensor.device.type} only where "
            "TRITON_INTERPRET=1 was set before Triton was imported"
        )
