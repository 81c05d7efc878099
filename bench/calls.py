"""What a call costs: convolutions so small that the time is the host's, torch and fastconv.

    python bench/calls.py [--filter REGEX] [--json FILE]

A row holds microseconds of the four columns and fastconv's time over torch's, each at its better
layout. One pixel is the function itself: `F.conv2d` against `fastconv.conv2d`, 8 channels to 8 by
1x1 with a bias. LeNet's convolutions are those of 28x28 images, in inference mode; the last is its
first linear layer as a convolution.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

import fastconv
from common import COLUMNS, ENGINES, LAYOUTS, TITLES, measure, parser, work

PIXEL = {"input": (8, 1, 1), "weight": (8, 8, 1, 1), "padding": 0}
LENET = [  # input, weight, padding
    ((1, 28, 28), (6, 1, 5, 5), 2),
    ((6, 14, 14), (16, 6, 5, 5), 0),
    ((16, 5, 5), (120, 16, 5, 5), 0),
]
REQUESTS = [
    {"name": "one pixel", "mode": "no_grad", **PIXEL},
    {"name": "one pixel, inference mode", "mode": "inference", **PIXEL},
    {"name": "one pixel, to be differentiated", "mode": "grad", **PIXEL},
    {"name": "one pixel, forward + backward", "mode": "step", **PIXEL},
    {"name": "one pixel, nn.Conv2d in eval mode", "mode": "module", **PIXEL},
    *(
        {
            "name": f"LeNet {x[0]} -> {w[0]}, 5x5 @{x[1]}",
            "input": x,
            "weight": w,
            "padding": p,
        }
        for x, w, p in LENET
    ),
]


def within(mode: Callable, function: Callable) -> Callable[[], object]:
    """Twenty calls in one switch of the grad mode, which costs as much as a call."""

    def run() -> None:
        with mode():
            for _ in range(20):
                function()

    return run


def build(engine: str, request: dict) -> Callable[[], object]:
    dtype, format = getattr(torch, request["dtype"]), LAYOUTS[request["layout"]]
    x = torch.randn(request["batch"], *request["input"], dtype=dtype).to(memory_format=format)
    w = torch.randn(*request["weight"], dtype=dtype).to(memory_format=format)
    b = torch.randn(len(w), dtype=dtype)
    conv2d = F.conv2d if engine == "torch" else fastconv.conv2d
    call = partial(conv2d, x, w, b, 1, request["padding"])
    mode = request.get("mode", "inference")
    if mode == "module":
        layers = torch.nn if engine == "torch" else fastconv.nn
        return within(torch.no_grad, partial(layers.Conv2d(8, 8, 1).to(dtype).eval(), x))
    if mode in ("grad", "step"):
        w.requires_grad_(), b.requires_grad_()
    if mode == "step":
        dy = torch.ones_like(call())
        return within(torch.enable_grad, lambda: torch.autograd.grad(call(), [w, b], dy))
    modes = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": torch.enable_grad}
    return within(modes[mode], call)


def main() -> int:
    options = parser(__doc__).parse_args()
    if options.worker:
        work(options, build)
        return 0

    def line(row: dict, peak: float) -> str:
        seconds = row["seconds"]
        theirs, ours = (min(seconds[f"{e} {at}"] for at in LAYOUTS) for e in ENGINES)
        times = "".join(f"{seconds[c] / 20 * 1e6:15.2f}" for c in COLUMNS)
        return f"{row['name']:36}{times}{ours / theirs:8.2f}"

    requests = [r for r in REQUESTS if re.search(options.filter, r["name"])]
    columns = "".join(f"{column:>15}" for column in TITLES)
    heading = f"{'µs a call (cl: channels_last)':36}{columns}{'time':>8}"
    return measure(__file__, options, {"calls": 20}, requests, heading, line)[1]


if __name__ == "__main__":
    sys.exit(main())
