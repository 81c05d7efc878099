"""Every distinct convolution layer of the networks on a GPU: fastconv beside torch and cuDNN.

    python bench/gpu_layers.py [--batch 32] [--precision float16] [--filter REGEX] [--json FILE]

A layer in three forms: bare, with bias and ReLU, with bias, residual and ReLU; against separate
kernels ("torch"), cuDNN's own fusion ("cudnn"), torch.compile ("compile"), with --triton also
fastconv's Triton kernels, and FlagGems where it is installed; float32 without TF32 against torch in
NCHW too. With --backward instead each gradient by itself and the bare forward pass. Every result is
compared with torch's before it is timed. A gain above 1 is faster; the roofline's ceilings, a copy
and a matmul, are measured first (float32's is a matmul without TF32, which 3xTF32 may pass).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

import fastconv
from fastconv.gpus import conv_work
from fastconv.ops import conv as conv_ops
from fastconv.ops.sizes import allows_tf32
from fastconv.testing.layers import LAYERS, Layer
from gpu_common import (
    PRECISIONS,
    Results,
    clock_for,
    floor_seconds,
    head_of,
    input_sets,
    measured,
    parser,
    run,
)

FORMS = ("bare", "relu", "residual")
GRADIENTS = ("input_grad", "weight_grad")  # with --backward, before the bare forward
COMPILED = "+compile"  # the same form beside torch.compile, measured last: compiling takes long
Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
# x, w, bias, and what has the output's size: residual, or incoming gradient


def torch_gradient(form: str, window: tuple) -> Callable[..., torch.Tensor]:
    """torch's own op, asked for one of its gradients."""
    stride, padding, dilation, groups = window
    wanted = GRADIENTS.index(form)
    pairs = [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups
    mask = [wanted == 0, wanted == 1, False]

    def gradient(x, w, b, dy):
        return torch.ops.aten.convolution_backward(dy, x, w, None, *pairs, mask)[wanted]

    return gradient


def fastconv_gradient(form: str, window: tuple) -> Callable[..., torch.Tensor]:
    stride, padding, dilation, groups = window
    numbers = (*[stride] * 2, *[padding] * 4, *[dilation] * 2, groups)

    def input_grad(x, w, b, dy):
        tf32 = int(x.is_cuda and allows_tf32())
        return conv_ops._conv2d_input_grad(dy, w, *x.shape[2:], *numbers, tf32)

    def weight_grad(x, w, b, dy):
        tf32 = int(x.is_cuda and allows_tf32())
        return conv_ops._conv2d_weight_grad(x, dy, *w.shape[2:], *numbers, tf32)

    return {"input_grad": input_grad, "weight_grad": weight_grad}[form]


def torch_form(form: str, window: tuple) -> Callable[..., torch.Tensor]:
    """Separate kernels, in place where torch can."""
    if form in GRADIENTS:
        return torch_gradient(form, window)

    def bare(x, w, b, r):
        return F.conv2d(x, w, None, *window)

    def relu(x, w, b, r):
        return F.conv2d(x, w, b, *window).relu_()

    def residual(x, w, b, r):
        return F.conv2d(x, w, b, *window).add_(r).relu_()

    return {"bare": bare, "relu": relu, "residual": residual}[form]


def fastconv_form(form: str, window: tuple) -> Callable[..., torch.Tensor]:
    if form in GRADIENTS:
        return fastconv_gradient(form, window)

    def call(x, w, b, r):
        return fastconv.conv2d(
            x,
            w,
            None if form == "bare" else b,
            *window,
            residual=r if form == "residual" else None,
            activation=None if form == "bare" else "relu",
        )

    return call


def cudnn_form(form: str, window: tuple) -> Callable[..., torch.Tensor]:
    """cuDNN's fused operations, as torch has them."""
    stride, padding, dilation, groups = window
    pairs = [stride] * 2, [padding] * 2, [dilation] * 2, groups
    if form == "relu":
        return lambda x, w, b, r: torch.ops.aten.cudnn_convolution_relu(x, w, b, *pairs)
    return lambda x, w, b, r: torch.ops.aten.cudnn_convolution_add_relu(x, w, r, 1.0, b, *pairs)


def on_triton(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def chosen(*operands):
        with fastconv.backend("triton"):
            return call(*operands)

    return chosen


def flag_gems_form(window: tuple) -> Callable[..., torch.Tensor] | None:
    try:
        import flag_gems
    except ImportError:
        return None
    return lambda x, w, b, r: flag_gems.conv2d(x, w, None, *window)


def operands(layer: Layer, batch: int, dtype: torch.dtype, device: str) -> Operands:
    """channels_last, normally distributed; the output's variance is near 1."""
    x_size, w_size, y_size = layer.sizes(batch)

    def random(size: list[int], scale: float = 1.0) -> torch.Tensor:
        values = (torch.randn(size, device=device) * scale).to(dtype)
        return values.to(memory_format=torch.channels_last)

    depth = w_size[1] * layer.R * layer.S
    bias = torch.randn(layer.K, device=device).to(dtype)
    return random(x_size), random(w_size, depth**-0.5), bias, random(y_size)


def contestants(
    layer: Layer,
    form: str,
    name: str,
    sets: list[Operands],
    device: str,
    compiled: bool,
    triton: bool,
) -> dict[str, list[Callable[[], torch.Tensor]]]:
    """The calls of each, one for every set of inputs; torch.compile beside torch's and ours."""
    window = (layer.stride, layer.padding, layer.dilation, layer.groups)
    plain = torch_form(form, window)
    forms = {"torch": plain, "fastconv": fastconv_form(form, window)}
    if compiled:
        torch._dynamo.reset()  # or the next layer counts as a recompilation
        forms["compile"] = torch.compile(plain, dynamic=False)
    elif triton:
        forms["triton"] = on_triton(forms["fastconv"])
    if device == "cuda" and not compiled:
        if form in FORMS[1:]:
            forms["cudnn"] = cudnn_form(form, window)
        elif form == "bare" and (found := flag_gems_form(window)):
            forms["flag_gems"] = found
    calls = {
        key: [lambda call=call, each=each: call(*each) for each in sets]
        for key, call in forms.items()
    }
    if form == "bare" and name == "float32":
        nchw = [tuple(t.contiguous() for t in each) for each in sets]
        calls["torch NCHW"] = [lambda each=each: plain(*each) for each in nchw]
    return calls


def line(row: dict) -> str:
    """One aligned row: microseconds, gains and share of the roofline, in the last mode."""
    seconds, ours = row["seconds"], row["seconds"].get("fastconv")
    head = f"{row['name']:30} {row['precision']:9}{row['form']:17}"
    if ours is None:
        return f"{head} FAILED  {row['errors']}"
    mode = list(ours)[-1]
    text = f"{head}{ours[mode] * 1e6:9.1f} µs {100 * row['floor'] / ours[mode]:4.0f} %"
    for rival, times in seconds.items():
        if rival != "fastconv":
            text += f"  {rival} {times[mode] / ours[mode]:.2f}"
    return text + "".join(f"  {name}: {error}" for name, error in row["errors"].items())


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, batch=32)
    options.add_argument("--triton", action="store_true", help="time fastconv's Triton kernels too")
    options.add_argument(
        "--backward",
        action="store_true",
        help="input gradient, weight gradient and bare forward, each by itself",
    )
    options = options.parse_args(arguments)
    forms = (*GRADIENTS, "bare") if options.backward else FORMS
    clock = clock_for(options.device)
    results = Results(
        options.json, head_of("gpu_layers", clock, options), ("name", "precision", "form")
    )
    roof = results.document["ceilings"]
    layers = {layer.name: layer for layer in LAYERS if re.search(options.filter, layer.name)}
    first, *others = options.precision or PRECISIONS
    requests = [  # where time is short, all of the first precision, then the others' first forms
        {"name": name, "precision": precision, "form": form}
        for precisions in ([first], others)
        for form in forms
        for precision in precisions
        for name in layers
    ]
    requests += [
        {"name": name, "precision": precision, "form": form + COMPILED}
        for precision in filter(None, options.compile.split(","))
        for name in layers
        for form in FORMS[1:]
        if not options.backward
    ]

    def measure(request: dict) -> dict:
        layer, name = layers[request["name"]], request["precision"]
        form = request["form"].removesuffix(COMPILED)
        precision = PRECISIONS[name]
        sizes = layer.sizes(options.batch)
        operations, moved = conv_work(*sizes, precision.dtype.itemsize)
        sets = [
            operands(layer, options.batch, precision.dtype, options.device)
            for _ in range(input_sets(clock, moved))
        ]
        if form == "residual":
            moved += sets[0][3].nbytes
        floor = floor_seconds(operations, moved, name, roof)
        compiled = request["form"] != form
        with precision.switched(), torch.no_grad():
            calls = contestants(layer, form, name, sets, options.device, compiled, options.triton)
            found = measured(clock, calls, precision)
        bound = "memory" if floor_seconds(0, moved, name, roof) == floor else "products"
        return {"floor": floor, "bound": bound, **found}

    return run(options, results, requests, measure, line, ("precision", "form"))


if __name__ == "__main__":
    sys.exit(main())
