"""Every CPU kernel on four threads, and eight Python threads in one module, under ThreadSanitizer.

    FASTCONV_SANITIZE=thread FASTCONV_CUDA=0 python setup.py build_ext --inplace
    python bench/thread_sanitizer.py [--json FILE]

torch and Python are not instrumented: what they access is not seen, and csrc/tensor.h tells the
sanitizer where a parallel region of torch's OpenMP begins and ends (without it, every region would
be reported as racing with the next). What is judged are the accesses of fastconv's own code: tasks
of one region with each other, and calls from different threads. Prints the reports that have a
frame of it; exit status 1 where there is one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

PROBLEMS = {  # input, weight, (stride, padding, dilation, groups); each is more than 50 us of work
    "winograd 3x3": ((2, 32, 40, 36), (48, 32, 3, 3), (1, 1, 1, 1)),
    "winograd, small map": ((1, 128, 7, 7), (160, 128, 3, 3), (1, 1, 1, 1)),
    "winograd 5x5, grouped": ((2, 32, 40, 36), (40, 16, 5, 5), (1, 2, 1, 2)),
    "direct, strided": ((2, 24, 41, 36), (40, 24, 3, 3), (2, 1, 1, 1)),
    "direct, stem": ((1, 3, 80, 70), (32, 3, 7, 7), (2, 3, 1, 1)),
    "1x1": ((4, 64, 30, 31), (96, 64, 1, 1), (1, 0, 1, 1)),
    "depthwise": ((4, 48, 50, 41), (48, 1, 3, 3), (1, 1, 1, 48)),
    "depthwise, strided": ((4, 80, 50, 41), (80, 1, 5, 5), (2, 2, 1, 80)),
    "narrow groups": ((2, 48, 50, 41), (48, 4, 3, 3), (1, 1, 1, 12)),
    "winograd, dilated": ((2, 32, 40, 37), (40, 32, 3, 3), (1, 3, 3, 1)),
    "winograd, columns between each other": ((1, 176, 17, 24), (176, 16, 5, 5), (1, 0, (1, 2), 11)),
    "dilated past the image": ((2, 16, 40, 37), (24, 16, 3, 3), (1, 40, 40, 1)),
    "few outputs": ((2, 40, 40, 37), (2, 40, 5, 5), (1, 2, 1, 1)),
}
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def kernels() -> None:
    """Forward and gradients of every algorithm, pooling and add: one thread of Python, four of
    torch."""
    import fastconv

    for layout in LAYOUTS:
        for input, weight, window in PROBLEMS.values():
            x = torch.randn(input).contiguous(memory_format=layout).requires_grad_()
            w, b = torch.randn(weight, requires_grad=True), torch.randn(weight[0])
            for _ in range(2):
                y = fastconv.conv2d(x, w, b.requires_grad_(), *window, activation="relu")
                torch.autograd.grad(y.sum(), (x, w, b))
        x = torch.randn(4, 32, 61, 50).contiguous(memory_format=layout).requires_grad_()
        y = fastconv.max_pool2d(x, 3, 2, 1) + fastconv.avg_pool2d(x, 3, 2, 1)
        y = y + fastconv.adaptive_avg_pool2d(x, 1)
        torch.autograd.grad(fastconv.residual_add(y, y, "sigmoid").sum(), x)


def module() -> None:
    """Eight Python threads in one module: packed weights in eval mode, gradients, and a choice of
    algorithms that changes meanwhile."""
    import fastconv
    from fastconv import _C

    net = torch.nn.Sequential(
        fastconv.nn.Conv2d(16, 32, 3, padding=1, activation="relu"),
        fastconv.nn.MaxPool2d(3, 2, 1),
        fastconv.nn.Conv2d(32, 24, 1),
    ).eval()

    def run(i: int) -> None:
        x = torch.randn(1, 16, 30 + i % 4, 31)
        with torch.no_grad():
            net(x)
        torch.autograd.grad(net(x).sum(), tuple(net.parameters()))
        if i % 4 == 0:
            _C.choose([1, 16, 30, 31], [8, 16, 3, 3], [1] * 9, 0, 0, ("direct", "")[i % 8 // 4])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(64)))


def work() -> None:
    from fastconv import _C

    for isa in _C.cpu_isas().split():
        _C.set_cpu_isa(isa)
        for threads in (4, 1):
            torch.set_num_threads(threads)
            kernels()
            module()


def reports(folder: Path) -> tuple[list[str], int]:
    """Reports with a frame of fastconv's, and how many others there are."""
    texts = [path.read_text(errors="replace") for path in folder.iterdir()]
    found = [t for text in texts for t in text.split("==================") if "WARNING: " in t]
    ours = [t for t in found if "csrc/" in t or "fastconv/_C" in t]
    return ours, len(found) - len(ours)


def under_the_sanitizer(parser: argparse.ArgumentParser) -> Path:
    """The folder of its reports; starts this script again where it is not loaded yet."""
    if folder := os.environ.get("FASTCONV_TSAN_REPORTS"):
        return Path(folder)
    place = Path(next(iter(importlib.util.find_spec("fastconv").submodule_search_locations)))
    if not any(b"__tsan_init" in file.read_bytes() for file in place.glob("_C*.so")):
        parser.error("this build has no ThreadSanitizer: see the head of this file")
    folder = tempfile.mkdtemp()
    library = subprocess.check_output(["g++", "-print-file-name=libtsan.so"], text=True).strip()
    settings = f"ignore_noninstrumented_modules=1 exitcode=0 log_path={folder}/log"
    more = {"LD_PRELOAD": library, "TSAN_OPTIONS": settings, "FASTCONV_TSAN_REPORTS": folder}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **more})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the summary")
    options = parser.parse_args()
    folder = under_the_sanitizer(parser)
    from common import machine, save
    from fastconv import _C

    work()
    ours, others = reports(folder)
    shutil.rmtree(folder)
    print("\n".join(ours))
    print(f"{len(ours)} reports of fastconv's code, {others} others")
    if options.json:
        document = {"benchmark": "thread_sanitizer", **machine(), "problems": list(PROBLEMS)}
        document |= {"instruction sets": _C.cpu_isas(), "threads of torch": [4, 1]}
        document |= {"threads of Python in one module": 8, "reports": len(ours), "others": others}
        save(options.json, document)
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
