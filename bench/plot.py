"""Pictures and the README's tables from the results files.

python bench/plot.py                        bench/results/*.json -> a PNG beside each, of layers a
                                            roofline too
python bench/plot.py --readme README.md     replaces the text between the markers
                                            <!-- bench:begin --> and <!-- bench:end -->
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from common import COLUMNS, ENGINES, LAYOUTS, gains, geometric_mean
from fastconv.gpus import conv_work
from fastconv.testing.layers import LAYERS
from fastconv.testing.other_layers import OTHER_LAYERS

ELEMENT = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}  # bytes

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
RESULTS = Path(__file__).parent / "results"


def load(folder: Path) -> dict[str, dict]:
    """The results files that have a table, by stem."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {stem: found[stem] for stem in found if found[stem].get("benchmark") in TABLES}


def plot(document: dict, path: Path) -> None:
    """A bar for each row: the gain over torch's better layout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in document["rows"] if "bytes" not in row]  # not pools.py's copies
    labels = [f"{row['name']} {row.get('direction', '')}".strip() for row in rows]
    values = [gains(row["seconds"])[0] for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 1.8 + 0.22 * len(rows)), layout="constrained")
    axes.barh(labels, values, color=["tab:green" if v >= 1 else "tab:orange" for v in values])
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("times as fast as torch's better layout")
    figure.suptitle(caption(document).replace("; ", "\n"), fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def roofline(document: dict, path: Path) -> None:
    """Each layer's operations per byte and per second, under FMA peak and a copy's bandwidth.

    Operations are the direct algorithm's, bytes every operand's once: Winograd, which multiplies
    less, stands above the roof.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    sizes = {layer.name: layer.sizes(document["batch"]) for layer in LAYERS + OTHER_LAYERS}
    points: dict[str, list] = {engine: [] for engine in ENGINES}
    for row in document["rows"]:
        if row["direction"] == "forward" and row["name"] in sizes:
            work, moved = conv_work(*sizes[row["name"]], element=ELEMENT[document["dtype"]])
            for engine in ENGINES:
                best = min(row["seconds"][f"{engine} {layout}"] for layout in LAYOUTS)
                points[engine].append((work / moved, work / best / 1e9))
    for engine, marker in zip(ENGINES, "xo", strict=True):
        axes.plot(*zip(*points[engine], strict=True), marker, label=engine, alpha=0.7)
    peak, slope = document["fma_gflops"], document["copy_gbytes"]
    least, most = (f(x for x, _ in points["fastconv"]) for f in (min, max))
    knee = peak / slope
    xs = [min(least, knee) / 2, knee, most * 1.2]
    axes.plot(xs, [min(peak, slope * x) for x in xs], "k", label="FMA peak, bandwidth of a copy")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.suptitle(caption(document).replace("; ", "\n"), fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def caption(document: dict) -> str:
    """What was measured, where, with what."""
    kind = " (training step)" if document.get("train") else ""
    kind += " of other networks" if document.get("others") else ""
    threads = document["threads"]
    isa = f"{document['isa']}, " if "isa" in document else ""
    return (
        f"{document['benchmark']}{kind}, batch {document['batch']}, {document['dtype']}, {isa}"
        f"{threads} thread{'s' if threads > 1 else ''}; {document['processor']}, FMA peak "
        f"{document['fma_gflops']:.0f} GFLOP/s; torch {document['torch']}, "
        f"fastconv {document['fastconv']}; {document['date']}"
    )


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose columns but the first are aligned right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def networks_table(rows: list[dict]) -> str:
    """Milliseconds of each network in the four columns, and the gain."""
    cells = [
        [row["name"]]
        + [f"{row['seconds'][column] * 1e3:.3g}" for column in COLUMNS]
        + [f"{gains(row['seconds'])[0]:.2f}"]
        for row in rows
    ]
    mean = geometric_mean(gains(row["seconds"])[0] for row in rows)
    cells.append(["geometric mean", *[""] * len(COLUMNS), f"{mean:.2f}"])
    return markdown(["ms", *COLUMNS, "gain"], cells)


def layers_table(rows: list[dict]) -> str:
    """Geometric means over the layers, and the best and the worst layer, of each direction."""
    cells = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        found = [
            (*gains(row["seconds"]), row["name"]) for row in rows if row["direction"] == direction
        ]
        means = [f"{geometric_mean(gain[i] for gain in found):.2f}" for i in (0, 1)]
        ends = [f"{gain[0]:.2f} ({gain[2]})" for gain in (max(found), min(found))]
        cells.append([direction, str(len(found)), *means, *ends])
    return markdown(
        ["", "layers", "gain over torch's better layout", "NCHW to NCHW", "best", "worst"], cells
    )


def pools_table(rows: list[dict]) -> str:
    """Shares of a copy's speed, and the gain; the row before a row is its copy's."""
    cells = []
    for copy, row in zip(rows[::2], rows[1::2], strict=True):
        least = min(copy["seconds"].values())
        shares = [f"{least / row['seconds'][f'fastconv {layout}']:.2f}" for layout in LAYOUTS]
        cells.append([row["name"], *shares, f"{gains(row['seconds'])[0]:.2f}"])
    return markdown(["speed over a memcpy's", *LAYOUTS, "gain over torch"], cells)


def calls_table(rows: list[dict]) -> str:
    """Microseconds of a call, at better layout (a sample is 20 of them), and the gain."""
    cells = []
    for row in rows:
        times = [
            min(row["seconds"][f"{engine} {layout}"] for layout in LAYOUTS) / 20 * 1e6
            for engine in ENGINES
        ]
        cells.append([row["name"], *(f"{t:.1f}" for t in times), f"{gains(row['seconds'])[0]:.2f}"])
    return markdown(["µs a call", *ENGINES, "gain"], cells)


TABLES = {
    "networks": networks_table,
    "layers": layers_table,
    "pools": pools_table,
    "calls": calls_table,
}


def tables(documents: dict[str, dict]) -> str:
    """Markdown of every results file: caption and table."""
    return "\n\n".join(
        f"{caption(document)}:\n\n{TABLES[document['benchmark']](document['rows'])}"
        for document in documents.values()
        if document["rows"]
    )


def replace_between_markers(text: str, tables: str) -> str:
    """``text`` with ``tables`` in place of what stood between the markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected one {BEGIN} followed by one {END}")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{tables}\n{END}{tail}"


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options.add_argument("--readme", type=Path, metavar="FILE")
    options = options.parse_args()
    documents = load(options.results)
    if not documents:
        print(f"no results in {options.results}: run bench/layers.py --json", file=sys.stderr)
        return 1
    if options.readme:
        text = replace_between_markers(options.readme.read_text(), tables(documents))
        beside = options.readme.with_name(options.readme.name + ".part")
        beside.write_text(text)
        os.replace(beside, options.readme)
        return 0
    for stem, document in documents.items():
        pictures = {f"{stem}.png": plot}
        if document["benchmark"] == "layers" and "copy_gbytes" in document:
            pictures[f"{stem}_roofline.png"] = roofline
        for name, draw in pictures.items():
            draw(document, options.results / name)
            print(options.results / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
