"""What the GPU kernels are to reach, and what the results of bench/gpu.sh say is reached.

    python bench/gpu_bars.py FOLDER

One line for each bar: the least that it asks for, the geometric mean, whether that reaches it (of
some bars each row is to), how many rows do, and the worst; a row where ours failed counts as 0.
Gains are torch's, or the rival's, time over fastconv's, of CUDA graphs; shares are of the roofline,
which for poolings and adds is the speed of a copy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from common import geometric_mean
from fastconv.testing.layers import LAYERS, Layer

LAYER = {layer.name: layer for layer in LAYERS}
Value = Callable[[dict], float | None]  # of a row; 0: ours failed; None: there is no such thing
FUSED = ("relu", "residual")
GRADIENTS = ("input_grad", "weight_grad")


class Bar(NamedTuple):
    """`value` of the rows of the file `stem` is at least `least`: the mean, or of `each` row."""

    what: str
    least: float
    stem: str
    value: Value
    each: bool = False


def gain(rival: str, ours: str = "fastconv", mode: str = "graph") -> Value:
    """The rival's time over ours."""

    def value(row: dict) -> float | None:
        seconds = row["seconds"]
        if ours in row["errors"]:
            return 0.0
        if mode not in seconds.get(rival, {}) or mode not in seconds.get(ours, {}):
            return None
        return seconds[rival][mode] / seconds[ours][mode]

    return value


def better_layout(row: dict) -> float | None:
    """The gain over the faster of torch's layouts."""
    found = [gain(name)(row) for name in ("torch", "torch NCHW")]
    return min(found) if None not in found else None


def share(row: dict) -> float | None:
    """Of the roofline."""
    return (
        0.0 if "fastconv" in row["errors"] else row["floor"] / row["seconds"]["fastconv"]["graph"]
    )


def of(
    value: Value,
    forms: tuple[str, ...],
    precision: str = "float16",
    name: str = "",
    layer: Callable[[Layer], bool] | None = None,
    bound: str | None = None,
) -> Value:
    """The value of rows of these forms, of names that hold `name`, of layers that are chosen, of
    those that the roofline says are bound by "memory" or by "products"."""

    def chosen(row: dict) -> float | None:
        here = row["form"] in forms and row["precision"] == precision and name in row["name"]
        here = here and bound in (None, row.get("bound"))
        return value(row) if here and (layer is None or layer(LAYER[row["name"]])) else None

    return chosen


def resnet50(value: Value) -> Value:
    return lambda row: value(row) if (row["name"], row["precision"]) == RESNET50 else None


RESNET50 = ("resnet50", "float16")


def is_stem(layer: Layer) -> bool:
    return layer.C == 3


def is_1x1(layer: Layer) -> bool:
    return layer.R == layer.S == 1


def is_strided(layer: Layer) -> bool:
    return layer.stride > 1 and layer.C > 4


TORCH, TRITON = gain("torch"), gain("torch", "triton")
COMPILED = tuple(form + "+compile" for form in FUSED)
BARS = (
    Bar("fused over separate kernels, float16", 1.15, "layers", of(TORCH, FUSED)),
    Bar("fused over cuDNN's fused, float16", 0.95, "layers", of(gain("cudnn"), FUSED)),
    Bar("fused over torch.compile, float16", 0.95, "layers", of(gain("compile"), COMPILED)),
    Bar("bare, float16", 0.9, "layers", of(TORCH, ("bare",))),
    Bar("bare, bfloat16", 0.9, "layers", of(TORCH, ("bare",), "bfloat16")),
    Bar("bare, tf32", 0.9, "layers", of(TORCH, ("bare",), "tf32")),
    Bar("float32 bound by products, best layout", 1.3, "layers",
        of(better_layout, ("bare",), "float32", bound="products")),
    Bar("bare, each layer", 0.5, "layers", of(TORCH, ("bare",)), each=True),
    Bar("1x1 bound by memory, of a copy", 0.85, "layers",
        of(share, ("bare",), layer=is_1x1, bound="memory"), each=True),
    Bar("input gradient", 0.85, "backward", of(TORCH, GRADIENTS[:1])),
    Bar("weight gradient", 0.85, "backward", of(TORCH, GRADIENTS[1:])),
    Bar("strided input gradient", 2, "backward", of(TORCH, GRADIENTS[:1], layer=is_strided)),
    Bar("stems' weight gradient", 2, "backward", of(TORCH, GRADIENTS[1:], layer=is_stem)),
    Bar("gradients, each layer", 0.5, "backward", of(TORCH, GRADIENTS), each=True),
    *(
        Bar(f"poolings and adds, {form}, of a copy", 0.85, "pools", of(share, (form,)), each=True)
        for form in ("inference", "forward", "both")
    ),
    Bar("max pooling, forward + backward", 1.5, "pools", of(TORCH, ("both",), name=" max ")),
    Bar("step of ResNet-50, batch 64, eager", 1, "train64",
        resnet50(gain("torch", mode="eager"))),
    Bar("step of ResNet-50, batch 64, graph", 1, "train64", resnet50(TORCH)),
    Bar("Triton, bare", 0.75, "triton", of(TRITON, ("bare",))),
    Bar("Triton, fused over separate kernels", 1, "triton", of(TRITON, FUSED)),
    Bar("Triton, gradients", 0.7, "triton_backward", of(TRITON, GRADIENTS)),
)  # fmt: skip


def line(bar: Bar, document: dict | None) -> str:
    """One aligned row."""
    head = f"{bar.what:40}{bar.least:7.2f}"
    found = [(bar.value(row), row["name"]) for row in (document or {"rows": []})["rows"]]
    found = [(value, name) for value, name in found if value is not None]
    if not found:
        return f"{head}  not measured"
    worst, name = min(found)
    enough = sum(value >= bar.least for value, _ in found)
    mean = geometric_mean(value for value, _ in found) if worst else 0.0
    reached = enough == len(found) if bar.each else mean >= bar.least
    text = f"{head}{mean:7.2f}  {'reached' if reached else 'MISSED':8}{enough:4} of {len(found):3}"
    return f"{text}  worst {worst:.2f} {name}" + ("" if document["complete"] else "  (incomplete)")


def table(folder: Path) -> Iterator[str]:
    yield f"{'':40}{'least':>7}{'mean':>7}  {'':8}rows that reach it"
    for bar in BARS:
        path = folder / f"{bar.stem}.json"
        yield line(bar, json.loads(path.read_text()) if path.exists() else None)


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("folder", type=Path, metavar="FOLDER", help="that bench/gpu.sh wrote to")
    print("\n".join(table(options.parse_args(arguments).folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
