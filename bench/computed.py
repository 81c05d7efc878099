"""What the CUDA planner computes for every layer of the networks. NOTHING HERE IS MEASURED.

    python bench/computed.py [--batch 32] [--csv bench/results/computed_not_measured.csv]

For each GPU of fastconv.gpus, precision and direction: algorithm, tile, splits of the depth, waves,
what bounds the layer by the datasheet, and the share of that roofline which the planner's model of
cycles expects (empty where the algorithm has no model). It runs anywhere and needs no GPU.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
from pathlib import Path

import fastconv
from fastconv.explain import DIRECTIONS
from fastconv.gpus import GPUS
from fastconv.testing.layers import LAYERS
from gpu_common import PRECISIONS

COLUMNS = ("GPU", "precision", "batch", "layer", "direction", "algorithm", "tile", "splits")
COLUMNS += tuple(
    f"{name} (computed)" for name in ("waves", "bound", "roofline µs", "% of roofline")
)


def rows(batch: int):
    """One row for each GPU, precision, layer and direction, in the order of COLUMNS."""
    for gpu in GPUS:
        for name, precision in PRECISIONS.items():
            if name == "bfloat16":  # float16's
                continue
            with precision.switched():
                for layer in LAYERS:
                    x, w, _ = layer.sizes(batch)
                    window = layer.stride, layer.padding, layer.dilation, layer.groups
                    for direction in DIRECTIONS:
                        options = {"backend": "cuda", "dtype": precision.dtype, "gpu": gpu}
                        answer = fastconv.explain(x, w, *window, direction=direction, **options)
                        e = answer.estimate
                        waves = "" if e.waves is None else f"{e.waves:.2f}"
                        share = "" if e.roofline is None else f"{100 * e.roofline:.0f}"
                        head = gpu, name, batch, layer.name, direction
                        chosen = answer.algorithm, e.tile, e.splits
                        yield (*head, *chosen, waves, e.bound, f"{e.floor * 1e6:.3g}", share)


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--batch", type=int, default=32)
    default = Path(__file__).parent / "results/computed_not_measured.csv"
    options.add_argument("--csv", type=Path, default=default, metavar="FILE")
    options = options.parse_args(arguments)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows(options.batch))
    beside = options.csv.with_name(options.csv.name + ".part")
    beside.write_text(text.getvalue())
    os.replace(beside, options.csv)
    print(f"{options.csv}: computed, not measured")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
