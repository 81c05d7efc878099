"""The results of a GPU benchmark: a file that is written row by row, and its summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from common import geometric_mean, save


class Results:
    """A results file, written after each row. Rows that an earlier run of the same sources, device
    and settings left there are kept, so that a run which time cut off can go on; a file of others
    becomes NAME.earlier.json."""

    def __init__(self, path: Path | None, head: dict, keys: Sequence[str]):
        self.path, self.keys = path, keys
        self.document = {**head, "complete": False, "rows": []}
        if path and path.exists():
            before = json.loads(path.read_text())
            same = all(before.get(k) == v for k, v in head.items() if k not in ("date", "ceilings"))
            if same:
                self.document = {**before, "complete": False}
            else:
                path.replace(path.with_suffix(".earlier.json"))

    def has(self, **row) -> bool:
        return any(
            all(known[key] == row[key] for key in self.keys) for known in self.document["rows"]
        )

    def add(self, row: dict) -> None:
        self.document["rows"].append(row)
        self.save()

    def finish(self, complete: bool) -> None:
        self.document["complete"] = complete
        self.save()

    def save(self) -> None:
        if self.path:
            save(self.path, self.document)


def summary(document: dict, groups: Sequence[str]) -> list[str]:
    """For each group of rows and mode: gain over each rival (geometric mean, worst row), and the
    share of the roofline, where rows have a floor, of fastconv's and of the rival's kernels;
    then the same of fastconv's Triton kernels over torch, where they were timed."""
    rows = document["rows"]
    lines = [
        f"{'':28}{'mode':7}{'over':>18}{'rows':>6}{'gain':>8}{'worst':>8}  "
        f"{'roofline % (torch)':20}worst row"
    ]
    for group in dict.fromkeys(tuple(row[key] for key in groups) for row in rows):
        mine = [row for row in rows if tuple(row[key] for key in groups) == group]
        rivals = dict.fromkeys(n for row in mine for n in row["seconds"] if n != "fastconv")
        modes = dict.fromkeys(m for row in mine for s in row["seconds"].values() for m in s)
        for mode in modes:
            pairs = [("fastconv", rival) for rival in rivals]
            pairs += [("triton", rival) for rival in rivals if rival.startswith("torch")]
            for ours, rival in pairs:
                line = _against(mine, ours, rival, mode)
                if line:
                    over = rival if ours == "fastconv" else f"{rival} ({ours})"
                    lines.append(f"{' '.join(group):28}{mode:7}{over:>18}{line}")
    errors = [(row["name"], n, e) for row in rows for n, e in row["errors"].items()]
    for name, contestant, error in errors[:8]:
        lines.append(f"not measured: {name}, {contestant}: {error}")
    if len(errors) > 8:
        lines.append(f"not measured: {len(errors) - 8} more")
    if not document["complete"]:
        lines.append("INCOMPLETE: time was up; the same command goes on where this run ended")
    return lines


def _against(rows: list[dict], ours: str, rival: str, mode: str) -> str | None:
    both = [
        (row["seconds"][rival][mode] / row["seconds"][ours][mode], row)
        for row in rows
        if mode in row["seconds"].get(rival, {}) and mode in row["seconds"].get(ours, {})
    ]
    if not both:
        return None
    worst, row = min(both, key=lambda pair: pair[0])
    shares = [
        100 * geometric_mean(row["floor"] / row["seconds"][name][mode] for _, row in both)
        for name in (ours, rival)
        if all(row.get("floor") for _, row in both)
    ]
    share = f"{shares[0]:.0f} ({shares[1]:.0f})" if shares else ""
    gain = geometric_mean(gain for gain, _ in both)
    return f"{len(both):6} {gain:7.2f} {worst:7.2f}  {share:20}{row['name']}"
