"""Random convolutions against float64: forward and the three gradients, settings of every kind.

    python bench/random_problems.py [--count 100000] [--seed 0] [--json FILE]

The problems and the rule they are held to are fastconv.testing.problems'. Prints the worst use
of the tolerance by algorithm; exit status 1 where one is past it.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
from pathlib import Path

import torch

from common import machine, save
from fastconv.testing.problems import check, draw


def progress(count: int):
    try:
        from rich.progress import track
    except ImportError:
        return range(count)
    return track(range(count), "problems", disable=not sys.stderr.isatty())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000, help="default 100000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the summary")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    counts, worst = collections.Counter(), collections.defaultdict(float)
    failures = []
    for i in progress(options.count):
        problem = draw(rng)
        for name, share in check(problem, generator):
            counts[name] += 1
            worst[name] = max(worst[name], share)
            if not share <= 1:
                failures.append({"number": i, "result": name, "share": share, **problem})
                print(f"problem {i}, {name}: {share:.2f} of what is allowed: {problem}")
    print(f"{'':28}{'results':>9}  worst use of the tolerance")
    for name in sorted(counts):
        print(f"{name:28}{counts[name]:9}  {worst[name]:.2f}")
    print(f"{len(failures)} of {options.count} problems failed")
    if options.json:
        rows = {n: {"results": counts[n], "worst": round(worst[n], 3)} for n in sorted(counts)}
        document = {"benchmark": "random_problems", **machine(), "count": options.count}
        document |= {"seed": options.seed, "failures": len(failures), "rows": rows}
        save(options.json, document)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
