"""Whole networks: torch and fastconv, NCHW and channels_last.

    python bench/networks.py [--train] [--filter REGEX] [--threads 1] [--batch 1] [--json FILE]

The same models from torch.nn's layers and from fastconv's, 224x224 pictures (LeNet 28x28): an eval
forward pass, or with ``--train`` one SGD step (forward, cross-entropy, backward, update). Each
engine runs in a process of its own and is asked in turn. A row holds milliseconds of the four
columns and the gains over torch's better layout and NCHW to NCHW (above 1 is faster).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

import fastconv.nn
from common import COLUMNS, LAYOUTS, TITLES, gains, geometric_mean, measure, parser, work
from fastconv import models
from fastconv.testing import torch_layers

NAMES = (*models.SIX, "resnet50")


def build(engine: str, request: dict) -> Callable[[], object]:
    """A forward pass or a training step of one network in one layout."""
    dtype, layout = getattr(torch, request["dtype"]), LAYOUTS[request["layout"]]
    name, batch = request["name"], request["batch"]
    layers = torch_layers if engine == "torch" else fastconv.nn
    model = models.NETWORKS[name](layers=layers).to(dtype=dtype).to(memory_format=layout)
    x = torch.randn(batch, *models.input_size(name), dtype=dtype).contiguous(memory_format=layout)
    if not request["train"]:
        model.eval().requires_grad_(False)
        return lambda: model(x)

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    classes = torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        outputs = model(x)
        heads = (
            outputs if isinstance(outputs, tuple) else (outputs,)
        )  # GoogLeNet's auxiliary ones too
        sum(F.cross_entropy(head, classes) for head in heads if head is not None).backward()
        optimizer.step()

    return step


def line(row: dict, peak: float) -> str:
    """One aligned row of the table."""
    times = "".join(f"{row['seconds'][column] * 1e3:15.3f}" for column in COLUMNS)
    better, nchw = gains(row["seconds"])
    return f"{row['name']:10}{times}{better:8.2f}{nchw:8.2f}"


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--train", action="store_true", help="an SGD step, not a forward pass")
    options = options.parse_args()
    if options.worker:
        work(options, build)
        return 0
    names = [name for name in NAMES if re.search(options.filter, name)]
    requests = [{"name": name, "train": options.train} for name in names]
    columns = "".join(f"{column:>15}" for column in TITLES)
    heading = f"{'ms':10}{columns}{'gain':>8}{'NCHW':>8}"
    rows, status = measure(__file__, options, {"train": options.train}, requests, heading, line)
    if rows:
        better, nchw = (geometric_mean(gains(row["seconds"])[i] for row in rows) for i in (0, 1))
        print(f"geometric mean {better:.3f} over torch's better layout, {nchw:.3f} NCHW to NCHW")
    return status


if __name__ == "__main__":
    sys.exit(main())
