"""`python -m fastconv info`: versions, what was built, processor, GPUs, environment."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping

import torch

import fastconv


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, what was built, processor and GPUs, environment variables",
        description="Prints what is needed to understand a result or to report a fault.",
    )
    parser.set_defaults(run=run)


def sections() -> dict[str, Mapping[str, object]]:
    """Title -> its lines, name -> value."""
    variables = {k: v for k, v in sorted(os.environ.items()) if k.startswith("FASTCONV_")}
    return {
        "versions": {
            "fastconv": fastconv.__version__,
            "torch": torch.__version__,
            "torch's CUDA": torch.version.cuda or "none",
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "build": fastconv.build_info(),
        "processor": fastconv.cpu_info(),
        "GPUs": gpus(),
        "environment": variables or {"FASTCONV_*": "none set"},
    }


def gpus() -> dict[str, str]:
    """Those that torch can use, by device."""
    if not torch.cuda.is_available():
        return {"cuda": "none that this torch can use"}
    found = {}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        capability = f"compute capability {gpu.major}.{gpu.minor}"
        found[f"cuda:{index}"] = (
            f"{gpu.name}, {capability}, {gpu.multi_processor_count} multiprocessors"
        )
    return found


def text(value: object) -> str:
    """A value for people: yes and no, lists without brackets."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | set | frozenset):
        return " ".join(map(str, value)) or "none"
    return str(value)


def run(options: argparse.Namespace) -> int:
    found = sections()
    width = max(len(str(name)) for lines in found.values() for name in lines)
    for title, lines in found.items():
        print(title)
        for name, value in lines.items():
            print(f"  {name!s:<{width}}  {text(value)}")
    return 0
