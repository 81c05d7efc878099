"""Fills docs/kernels.md: excerpts of the sources, the roofline, and the picture beside it.

python docs/build.py            writes them
python docs/build.py --check    fails where one is not what the sources give
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGE, PICTURE = DOCS / "kernels.md", DOCS / "gather.svg"
LANGUAGES = {".py": "python", ".cuh": "cpp", ".inl": "cpp", ".h": "cpp"}
# <!-- excerpt FILE | a part of the first line | a part of the last line -->
EXCERPT = re.compile(r"<!-- excerpt (\S+) \| (.+?) \| (.+?) -->\n.*?<!-- end -->", re.DOTALL)
ROOFLINE = re.compile(r"<!-- roofline -->\n.*?<!-- end -->", re.DOTALL)

# Dense float16 FLOP/s and bytes/s of NVIDIA's data sheets.
GPUS = {"A100 80 GB": (312e12, 2.04e12), "H100 SXM": (989e12, 3.35e12)}


def excerpt(path: str, first: str, last: str) -> str:
    """The lines of a file from one that holds `first` to the next that holds `last`.

    Raises:
        ValueError: the file has no such lines.
    """
    lines = (ROOT / path).read_text().splitlines()
    begin = next((i for i, line in enumerate(lines) if first in line), None)
    if begin is None:
        raise ValueError(f"{path} has no line with {first!r}")
    end = next((i for i, line in enumerate(lines) if i >= begin and last in line), None)
    if end is None:
        raise ValueError(f"{path} has no line with {last!r} after the one with {first!r}")
    return textwrap.dedent("\n".join(lines[begin : end + 1]))


def roofline(N=32, C=64, H=56, W=56, K=64, R=3, S=3) -> str:
    """One layer's FLOPs, bytes and least time, stride 1 and "same" padding, in float16."""
    P, Q, size = H, W, 2
    flops = 2 * N * K * P * Q * C * R * S
    read, written = size * (N * C * H * W + K * C * R * S), size * N * K * P * Q
    lines = [
        f"N={N}, C={C}, H=W={H}, K={K}, R=S={R}, float16: 2·N·K·P·Q·C·R·S = {flops / 1e9:.2f} "
        f"GFLOP; x and w read once, y written once: {(read + written) / 1e6:.1f} MB; "
        f"{flops / (read + written):.0f} FLOP per byte.",
        "",
        "| | FLOP/s | bytes/s | FLOP per byte at the ridge | products | memory | bound by |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, (peak, bandwidth) in GPUS.items():
        products, memory = flops / peak * 1e6, (read + written) / bandwidth * 1e6
        lines.append(
            f"| {name} | {peak / 1e12:.0f} T | {bandwidth / 1e12:.2f} T | {peak / bandwidth:.0f} | "
            f"{products:.1f} µs | {memory:.1f} µs | "
            f"{'products' if products > memory else 'memory'} |"
        )
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page with every marked part made anew."""

    def code(found: re.Match) -> str:
        path, first, last = found.groups()
        fence = f"```{LANGUAGES[Path(path).suffix]}\n{excerpt(path, first, last)}\n```"
        return f"<!-- excerpt {path} | {first} | {last} -->\n{fence}\n<!-- end -->"

    page = EXCERPT.sub(code, page)
    return ROOFLINE.sub(lambda _: f"<!-- roofline -->\n{roofline()}\n<!-- end -->", page)


# --- the picture --------------------------------------------------------------------------------

CELL, PAD = 22, 1
X_ROWS, X_COLUMNS = 5, 6  # H, W; R = S = 3 and padding 1 make P and Q the same
FIRST, COUNT = 8, 5  # the outputs of the tile, which crosses a row
CHOSEN = FIRST + 3  # one whose last column of taps lies in the padding
PALE, TILE, TAP, PALE_TAP, GREY = "#f4f4f4", "#bcd7f2", "#f6b26b", "#fde8d2", "#cfcfcf"


def is_outside(h: int, w: int) -> bool:
    """Whether a place lies in the padding."""
    return not (0 <= h < X_ROWS and 0 <= w < X_COLUMNS)


def rect(x: float, y: float, fill: str, dash: bool = False) -> str:
    style = ' stroke-dasharray="2 2"' if dash else ""
    return (
        f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{fill}" stroke="#555"{style}/>'
    )


def label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def draw() -> str:
    """x with the window of one output, the tile's rows of the product, and the tile of y."""
    parts: list[str] = []
    p, q = divmod(CHOSEN, X_COLUMNS)
    top = 60
    # x, framed by its padding.
    left = 20
    for h in range(-PAD, X_ROWS + PAD):
        for w in range(-PAD, X_COLUMNS + PAD):
            outside = is_outside(h, w)
            tap = abs(h - p) <= 1 and abs(w - q) <= 1
            fill = (PALE_TAP if outside else TAP) if tap else "white" if outside else PALE
            parts.append(rect(left + (w + PAD) * CELL, top + (h + PAD) * CELL, fill, outside))
    parts += [
        label(left, top - 28, "x  (N, H, W, C)"),
        label(left, top - 10, "dashed: padding, never read"),
    ]
    # The rows of the product: one per output of the tile, its depth (r, s, c).
    left = 260
    for m in range(COUNT):
        for tap in range(9):
            row, column = divmod(FIRST + m, X_COLUMNS)
            outside = is_outside(row + tap // 3 - PAD, column + tap % 3 - PAD)
            full, pale = (TAP, PALE_TAP) if FIRST + m == CHOSEN else (TILE, "white")
            fill = pale if outside else full
            parts.append(rect(left + tap * CELL, top + CELL * m, fill, outside))
    for tap in range(9):
        r, s = divmod(tap, 3)
        parts.append(
            label(left + tap * CELL + CELL / 2, top + COUNT * CELL + 14, f"{r}{s}", "middle")
        )
    parts += [
        label(left, top - 28, "BM rows of depth R·S·C, never stored"),
        label(left, top - 10, "a cell is the C channels of one tap rs"),
        label(left + 9 * CELL + 8, top + 3 * CELL, "×"),
    ]
    # w, a column per output channel.
    left = 490
    for tap in range(9):
        for k in range(3):
            parts.append(rect(left + k * CELL, top + CELL * tap, GREY))
    parts += [
        label(left, top - 28, "w  (K, R, S, C)"),
        label(left, top - 10, "BN channels"),
        label(left + 3 * CELL + 8, top + 3 * CELL, "="),
    ]
    # y with the tile.
    left = 600
    for h in range(X_ROWS):
        for w in range(X_COLUMNS):
            m = h * X_COLUMNS + w
            inside = FIRST <= m < FIRST + COUNT
            fill = TAP if m == CHOSEN else TILE if inside else PALE
            parts.append(rect(left + w * CELL, top + h * CELL, fill))
    parts += [
        label(left, top - 28, "y  (N, P, Q, K)"),
        label(left, top - 10, "a tile: BM outputs in memory's order"),
    ]
    body = "\n".join(parts)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="860" height="280" '
        'font-family="sans-serif" font-size="13">\n'
        '<rect width="860" height="280" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )


def main() -> int:
    made = {PAGE: filled(PAGE.read_text()), PICTURE: draw()}
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: python docs/build.py", file=sys.stderr)
        return bool(stale)
    for path in stale:
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
