"""Pooling and residual add against a copy of the same bytes: torch and fastconv, both layouts.

    python bench/pools.py [--filter REGEX] [--threads 1] [--batch 1] [--json FILE]

A row holds microseconds of the four columns, then for each layout of fastconv the speed over that
of a memcpy that moves as many bytes (read and written, fastconv's window index of one byte an
element among them), and the gain over torch's better layout. Every row follows its memcpy's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

import fastconv
from common import COLUMNS, LAYOUTS, TITLES, gains, measure, parser, work

SIZES = ((64, 112), (256, 28))  # channels, height and width of a batch's images
# name: (torch's function, fastconv's, an input needs its gradient, as with an index kept)
OPERATIONS: dict[str, tuple[Callable, Callable, bool]] = {
    "max 3x3/2 with index": (
        lambda x, z: F.max_pool2d(x, 3, 2, 1),
        lambda x, z: fastconv.max_pool2d(x, 3, 2, 1),
        True,
    ),
    "max 3x3/2": (
        lambda x, z: F.max_pool2d(x, 3, 2, 1),
        lambda x, z: fastconv.max_pool2d(x, 3, 2, 1),
        False,
    ),
    "max 2x2/2 with index": (
        lambda x, z: F.max_pool2d(x, 2, 2),
        lambda x, z: fastconv.max_pool2d(x, 2, 2),
        True,
    ),
    "average 2x2/2": (
        lambda x, z: F.avg_pool2d(x, 2, 2),
        lambda x, z: fastconv.avg_pool2d(x, 2, 2),
        False,
    ),
    "global average": (
        lambda x, z: F.adaptive_avg_pool2d(x, 1),
        lambda x, z: fastconv.adaptive_avg_pool2d(x, 1),
        False,
    ),
    "add + ReLU": (
        lambda x, z: F.relu(x + z),
        lambda x, z: fastconv.residual_add(x, z, "relu"),
        False,
    ),
}


def operands(request: dict, grad: bool) -> torch.Tensor:
    x = torch.randn(request["batch"], request["channels"], *2 * [request["size"]])
    x = x.to(getattr(torch, request["dtype"]))
    return x.contiguous(memory_format=LAYOUTS[request["layout"]]).requires_grad_(grad)


def moved(name: str, channels: int, size: int, batch: int, element: int) -> int:
    """Bytes read and written by one operation."""
    _, ours, grad = OPERATIONS[name]
    x = torch.empty(1, channels, size, size)
    y = ours(x, x)
    inputs = 2 if name.startswith("add") else 1
    return batch * (element * (inputs * x.numel() + y.numel()) + grad * y.numel())


def build(engine: str, request: dict) -> Callable[[], object]:
    """One operation, or the copy of its bytes."""
    if "bytes" in request:
        source = torch.empty(request["bytes"] // 2, dtype=torch.uint8).fill_(1)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    theirs, ours, grad = OPERATIONS[request["operation"]]
    x = operands(request, grad)
    function = theirs if engine == "torch" else ours
    z = operands(request, False)
    return lambda: function(x, z)


def main() -> int:
    options = parser(__doc__)
    options = options.parse_args()
    if options.worker:
        work(options, build)
        return 0
    requests = []
    element = getattr(torch, options.dtype).itemsize
    for operation in OPERATIONS:
        for channels, size in SIZES:
            name = f"{operation} {channels}@{size}"
            if re.search(options.filter, name):
                count = moved(operation, channels, size, options.batch, element)
                requests.append({"name": f"memcpy of {count / 1e6:.1f} MB", "bytes": count})
                row = {"operation": operation, "channels": channels, "size": size}
                requests.append({"name": name, **row})
    copy = {}

    def line(row: dict, peak: float) -> str:
        seconds = row["seconds"]
        text = f"{row['name']:30}" + "".join(f"{seconds[c] * 1e6:15.1f}" for c in COLUMNS)
        if "bytes" in row:
            copy["seconds"] = min(seconds.values())
            return text
        shares = "".join(f"{copy['seconds'] / seconds[f'fastconv {at}']:10.2f}" for at in LAYOUTS)
        return f"{text}{shares}{gains(seconds)[0]:8.2f}"

    columns = "".join(f"{column:>15}" for column in TITLES)
    heading = f"{'µs (cl: channels_last)':30}{columns}{'NCHW':>10}{'cl':>10}{'gain':>8}"
    _, status = measure(__file__, options, {}, requests, heading, line)
    return status


if __name__ == "__main__":
    sys.exit(main())
