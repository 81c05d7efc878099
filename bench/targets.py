"""What the CPU kernels were to reach, and what the results files say is reached.

    python bench/targets.py                             prints the table
    python bench/targets.py --readme bench/README.md    replaces it between the markers

A cell is the worst to the best row of a class and how many of its rows reach the target; of means,
the mean. "x FMA" is the direct algorithm's GFLOP/s over the FMA peak measured beside it, "x torch"
the time of torch's better layout over that of fastconv's. The last column names the paragraph on
why some rows do not reach it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from common import LAYOUTS, gains, geometric_mean
from fastconv.testing.layers import LAYERS, Layer
from layers import floating_operations
from plot import RESULTS, markdown, replace_between_markers

SETS = {"AVX-512": "zen4", "AVX2": "zen4_avx2"}  # a column: its results files' last part
LAYER = {layer.name: layer for layer in LAYERS}
Rows = Iterable[tuple[dict, dict, Layer]]  # document, row, layer


class Target(NamedTuple):
    """A row of the table: ``values`` of the document ``stem`` are at least ``least``."""

    what: str
    least: float
    stem: str
    values: Callable[[dict], Iterator[float]]


def layers_of(document: dict, direction: str, chosen: Callable[[Layer], bool]) -> Rows:
    """The document's rows of one direction whose layers are chosen."""
    for row in document["rows"]:
        if row["direction"] == direction and chosen(LAYER[row["name"]]):
            yield document, row, LAYER[row["name"]]


def over_peak(document: dict, row: dict, layer: Layer, layouts: Iterable[str]) -> float:
    """The multiple of the FMA peak, at the better of the layouts."""
    seconds = min(row["seconds"][f"fastconv {layout}"] for layout in layouts)
    work = floating_operations(layer, document["batch"], row["direction"])
    return work / seconds / 1e9 / row.get("fma_gflops", document["fma_gflops"])  # older files


def peak(what: str, least: float, chosen: Callable[[Layer], bool], layouts=LAYOUTS) -> Target:
    """A target of one image's forward pass in multiples of the FMA peak."""

    def values(document: dict) -> Iterator[float]:
        for found in layers_of(document, "forward", chosen):
            yield over_peak(*found, layouts)

    return Target(f"x FMA, {what}", least, "layers", values)


def gain(
    what: str,
    least: float,
    chosen: Callable[[Layer], bool],
    direction: str = "step",
    stem: str = "layers_batch16",
) -> Target:
    """A target in times as fast as torch, each engine at its better layout."""

    def values(document: dict) -> Iterator[float]:
        for _, row, _ in layers_of(document, direction, chosen):
            yield gains(row["seconds"])[0]

    return Target(f"x torch, {what}", least, stem, values)


def mean(of: Target, what: str, least: float, nchw: bool = False) -> Target:
    """The geometric mean of another target's rows."""

    def values(document: dict) -> Iterator[float]:
        direction = "forward" if of.stem == "layers" else "step"
        found = [gains(r["seconds"])[nchw] for _, r, _ in layers_of(document, direction, every)]
        if found:
            yield geometric_mean(found)

    return Target(f"x torch, {what}", least, of.stem, values)


def copies(what: str, least: float, operation: str, layouts: Iterable[str] = LAYOUTS) -> Target:
    """A target in shares of the speed of a memcpy of the same bytes, whose row is before."""

    def values(document: dict) -> Iterator[float]:
        rows = document["rows"]
        for copy, row in zip(rows[::2], rows[1::2], strict=True):
            if row["operation"] == operation:
                for layout in layouts:
                    yield min(copy["seconds"].values()) / row["seconds"][f"fastconv {layout}"]

    return Target(f"of a memcpy, {what}", least, "pools", values)


def calls(what: str, least: float, name: str) -> Target:
    """A target of a call's time, torch's over fastconv's."""

    def values(document: dict) -> Iterator[float]:
        for row in document["rows"]:
            if row["name"].startswith(name):
                yield gains(row["seconds"])[0]

    return Target(f"x torch, {what}", least, "calls", values)


def threads(what: str, least: float, chosen: Callable[[Layer], bool]) -> Target:
    """A target of two threads: their multiple of their FMA peak over one thread's of its own."""

    def values(document: dict) -> Iterator[float]:
        alone = {}
        for found in layers_of(document["alone"], "forward", chosen):
            alone[found[1]["name"]] = over_peak(*found, LAYOUTS)
        for found in layers_of(document, "forward", chosen):
            yield over_peak(*found, LAYOUTS) / alone[found[1]["name"]]

    return Target(f"{what}, over what the FMA peak gains", least, "layers_vgg16_threads2", values)


def every(layer: Layer) -> bool:
    return True


def shape(kernel: int, stride: int = 1, maps: Iterable[int] = (), channels=range(1 << 20)):
    """Layers of a square kernel with those maps (any) whose channels, both, lie in the range."""
    maps = tuple(maps)

    def chosen(layer: Layer) -> bool:
        square = (layer.R, layer.S, layer.stride) == (kernel, kernel, stride)
        within = layer.C in channels and layer.K in channels
        return square and within and (not maps or layer.W in maps)

    return chosen


def stem(layer: Layer) -> bool:
    return layer.C == 3 and layer.R > 3


def is_64_at_56(layer: Layer) -> bool:
    return layer.R == 3 and (layer.C, layer.W) in {(64, 56), (64, 112)} and layer.stride == 1


FORWARD = gain("forward, worst layer", 0.95, every, "forward", "layers")
STEP16 = gain("step of 16 images, worst layer", 0.9, every)
TARGETS = (
    mean(FORWARD, "forward, mean of all layers", 1.8),
    mean(FORWARD, "forward, mean, NCHW to NCHW", 2.3, nchw=True),
    FORWARD,
    peak("3x3, 256 to 512 channels @28, @56", 3.3, shape(3, 1, (28, 56), range(256, 513))),
    peak("3x3, 96 to 255 channels @28 to @112", 3.0, shape(3, 1, (28, 56, 112), range(96, 256))),
    peak("3x3, of 64 channels @56, @112", 2.75, is_64_at_56),
    peak("3x3, 64 channels @224", 2.4, shape(3, 1, (224,), range(64, 65))),
    peak("3x3, 192 to 384 channels @13, @14", 2.8, shape(3, 1, (13, 14), range(192, 385))),
    peak("3x3, 512 channels @14", 2.6, shape(3, 1, (14,), range(512, 513))),
    peak("3x3, 512 channels @7", 1.7, shape(3, 1, (7,), range(512, 513))),
    peak("5x5, 32 channels and more", 2.0, shape(5, 1, (), range(32, 1025))),
    peak("5x5 of 16 channels", 1.5, lambda layer: layer.R == 5 and layer.C == 16),
    peak("3x3/2, 64 to 128 channels", 1.25, lambda layer: layer.R == 3 and layer.stride == 2
         and layer.C in (64, 128)),
    peak("3x3/2, 256 channels @28", 1.2, lambda layer: layer.R == 3 and layer.stride == 2
         and (layer.C, layer.W) == (256, 28)),
    peak("3x3/2, 512 channels @14", 0.93, shape(3, 2, (14,), range(512, 513))),
    peak("11x11/4 and 7x7/2 of 3 channels", 0.92, stem),
    peak("3x3 of 3 channels", 0.84, lambda layer: layer.C == 3 and layer.R == 3),
    peak("1x1, channels_last", 0.92, shape(1), ("channels_last",)),
    peak("1x1, NCHW", 0.86, shape(1), ("NCHW",)),
    mean(STEP16, "step of 16 images, mean of all layers", 1.6),
    STEP16,
    *(
        gain(f"step of {count}, {what}", least, chosen, stem=name)
        for count, name, bars in (
            ("16 images", "layers_batch16", (3.2, 3.0, 2.8, 1.6, 1.4, 1.15, 0.97)),
            ("one image", "layers", (3.2, 2.4, 1.6, 1.6, 1.4, 1.15, 0.97)),
        )
        for least, (what, chosen) in zip(
            bars,
            (
                ("3x3, 64 to 128 channels", shape(3, 1, (), range(64, 129))),
                ("3x3, 256 to 512 channels @14", shape(3, 1, (14,), range(256, 513))),
                ("3x3, 512 channels @7", shape(3, 1, (7,), range(512, 513))),
                ("3x3/2, 64->128 @56", shape(3, 2, (56,), (64, 128))),
                ("3x3/2, 128->256 @28", shape(3, 2, (28,), (128, 256))),
                ("3x3/2, 256->512 @14", shape(3, 2, (14,), (256, 512))),
                ("1x1", shape(1)),
            ),
            strict=True,
        )
    ),
    gain("stems' weight gradient, 16 images", 1.15, lambda layer: layer.C == 3, "weight"),
    copies("max 3x3/2 with index, channels_last", 0.55, "max 3x3/2 with index", ("channels_last",)),
    copies("max 3x3/2 with index, NCHW", 0.4, "max 3x3/2 with index", ("NCHW",)),
    copies("max 3x3/2", 0.7, "max 3x3/2"),
    copies("max 2x2/2 with index, channels_last", 0.85, "max 2x2/2 with index", ("channels_last",)),
    copies("max 2x2/2 with index, NCHW", 0.65, "max 2x2/2 with index", ("NCHW",)),
    copies("average 2x2/2", 0.8, "average 2x2/2"),
    copies("global average", 0.9, "global average"),
    copies("add + ReLU", 0.9, "add + ReLU"),
    threads("two threads over one, 3x3 of VGG", 0.93, shape(3, 1, (), range(64, 1025))),
    calls("LeNet's layers, inference mode", 2, "LeNet"),
    calls("one pixel", 1 / 1.3, "one pixel, inference mode"),
    calls("one pixel with gradients", 1 / 1.5, "one pixel, to be differentiated"),
    calls("one pixel, forward + backward", 1 / 1.5, "one pixel, forward + backward"),
)  # fmt: skip


# Paragraphs of bench/README.md, and the targets that they are of; the first that matches.
WHY = {
    "threads": "threads",
    "max pooling": "max",
    "averages": "average",
    "add": "add",
    "1x1": "mean|1x1",
    "3x3/2": "3x3/2",
    "first layers": "of 3 channels|worst layer|stem",
    "5x5": "5x5",
    "3x3 with both gradients": "step.*3x3",
    "3x3": "3x3",
    "calls": "pixel|LeNet",
}


def reason(target: Target, found: Iterable[list[float]]) -> str:
    """The paragraph on why a column's values do not all reach the target; "" where they do."""
    if all(value >= target.least for values in found for value in values):
        return ""
    return next(name for name, pattern in WHY.items() if re.search(pattern, target.what))


def cell(target: Target, found: list[float]) -> str:
    """The worst to the best of the sorted rows, and how many reach the target."""
    if not found:
        return ""
    if len(found) == 1:
        return f"{found[0]:.2f}"
    reached = sum(value >= target.least for value in found)
    return f"{found[0]:.2f} to {found[-1]:.2f}, {reached} of {len(found)}"


def table(results: Path) -> str:
    """Markdown of every target and its cell in each column."""
    documents = {}
    for path in results.glob("*_zen4*.json"):
        documents[path.stem] = json.loads(path.read_text())
    for name, document in documents.items():
        document["alone"] = documents.get(name.split("_vgg16")[0])  # in one thread, all layers
    rows = []
    for target in TARGETS:
        first, *batch = target.stem.split("_")
        names = ["_".join([first, part, *batch]) for part in SETS.values()]
        found = [
            sorted(target.values(documents[name])) if name in documents else [] for name in names
        ]
        cells = [cell(target, values) for values in found]
        rows.append([target.what, f"{target.least:.3g}", *cells, reason(target, found)])
    return markdown(["what", "at least", *SETS, "why not more"], rows)


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options.add_argument("--readme", type=Path, metavar="FILE")
    options = options.parse_args()
    if not options.readme:
        print(table(options.results))
        return 0
    text = replace_between_markers(options.readme.read_text(), table(options.results))
    beside = options.readme.with_name(options.readme.name + ".part")
    beside.write_text(text)
    os.replace(beside, options.readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
