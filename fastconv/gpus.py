"""GPUs by name, and what their datasheets promise for a convolution: computed, never measured."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Gpu:
    """Public figures; the rates are multiply-adds a cycle of one multiprocessor."""

    arch: int  # compute capability
    sms: int  # streaming multiprocessors
    shared_per_sm: int  # bytes of shared memory
    l2: int  # bytes
    clock: float  # Hz, boost
    bandwidth: float  # bytes a second
    half_rate: int  # float16 and bfloat16 on tensor cores, dense, float32 sums; tf32 has half of it
    float_rate: int  # float32 outside them

    def facts(self) -> tuple[float, ...]:
        """Device of csrc/cuda/tiles.h: what the choice of tiles depends on."""
        return self.arch, self.sms, self.shared_per_sm, self.l2, self.clock, self.bandwidth

    def peak(self, precision: str) -> float:
        """FLOP/s: "half", "tf32", "float32" outside tensor cores, or "3xtf32" on them."""
        rate = {
            "half": self.half_rate,
            "tf32": self.half_rate / 2,
            "float32": self.float_rate,
            "3xtf32": self.half_rate / 6,
        }[precision]
        return 2 * rate * self.sms * self.clock


# Sources: NVIDIA's architecture whitepapers of A100 (SXM, 80 GB: 312 TFLOP/s in half precision),
# H100 (SXM5: 989) and Ada (RTX 4090: 165 with float32 sums, which makes 256 a cycle); the laptop's
# cores and clock from NVIDIA's comparison page (3072; up to 2.37 GHz, at 115 W), its L2 and
# bandwidth from TechPowerUp; shared memory from the CUDA programming guide. H200 is H100's chip:
# bandwidth from NVIDIA's datasheet (SXM), L2 as torch reports it, and the most that its clock
# reaches, 1.98 GHz, as of its 67 TFLOP/s in float32; its 989 in half precision are promised at
# H100's 1.83, so that its peak here, 1070, is an eighth more than H100's for the clock alone.
GPUS = {
    "A100": Gpu(80, 108, 164 << 10, 40 << 20, 1.41e9, 2.039e12, 1024, 64),
    "H100": Gpu(90, 132, 228 << 10, 50 << 20, 1.83e9, 3.35e12, 2048, 128),
    "H200": Gpu(90, 132, 228 << 10, 60 << 20, 1.98e9, 4.8e12, 2048, 128),
    "RTX 4060 Laptop": Gpu(89, 24, 100 << 10, 32 << 20, 2.37e9, 0.256e12, 256, 128),
}


def gpu_of(properties) -> Gpu | None:
    """The GPU of torch.cuda.get_device_properties(): its own sizes, clocks and bandwidth, which the
    planner reads too when a kernel is launched, and the table's rates.

    None where the table has no GPU of this name and as many multiprocessors, as of an H100 for
    PCIe: its rates would be guesses.
    """
    for name, known in GPUS.items():
        named = re.search(rf"\b{name}\b", properties.name)  # GH200 is not H200
        if named and properties.multi_processor_count == known.sms:
            shared, l2 = properties.shared_memory_per_multiprocessor, properties.L2_cache_size
            # In kHz and bits; drivers need not tell. Memory moves data twice a cycle.
            clock, memory, bits = (
                getattr(properties, each, 0)
                for each in ("clock_rate", "memory_clock_rate", "memory_bus_width")
            )
            rates = dict(clock=1e3 * clock, bandwidth=2e3 * memory * bits / 8)
            told = {key: value for key, value in rates.items() if value > 0}
            return replace(known, shared_per_sm=shared, l2=l2, **told)
    return None


def conv_work(
    input: Sequence[int], weight: Sequence[int], output: Sequence[int], element: int
) -> tuple[int, int]:
    """(operations, bytes): 2 N K P Q C/G R S of the direct algorithm, each operand moved once."""
    operations = 2 * math.prod(output) * math.prod(weight[1:])
    return operations, element * sum(math.prod(size) for size in (input, weight, output))


@dataclass(frozen=True)
class Estimate:
    """What the planner's model of cycles says of a convolution on one GPU; nothing is measured.

    `bound` is what the roofline (datasheet peak and bandwidth) stands on, `floor` its seconds.
    Where the algorithm has no model, `waves` and `roofline` (the expected share of it) are None.
    """

    gpu: str
    tile: str
    splits: int
    waves: float | None
    bound: str  # "compute" or "memory"
    floor: float
    roofline: float | None

    def __str__(self) -> str:
        words = [f"computed for {self.gpu}, not measured:"]
        if self.tile:
            words.append(f"tile {self.tile},")
        if self.splits > 1:
            words.append(f"depth in {self.splits} splits,")
        if self.waves is not None:
            words.append(f"{self.waves:.2f} waves,")
        words.append(f"bound by {self.bound} ({self.floor * 1e6:.3g} µs),")
        expected = "not modelled" if self.roofline is None else f"{100 * self.roofline:.0f} %"
        words.append(f"expected share of that roofline: {expected}")
        return " ".join(words)


def estimate(
    name: str,
    gpu: Gpu,
    work: tuple[int, int],
    dtype: torch.dtype,
    tf32: bool,
    tile: str,
    splits: int,
    waves: float,
    cycles: float,
) -> Estimate:
    """The planner's tile on `gpu`, called `name`; without a model `waves` and `cycles` are 0.

    A kernel takes the longest of its cycles, its products at the rate of its arithmetic and its
    bytes. The roofline of float32 is the faster of plain float32 and 3xTF32.
    """
    operations, moved = work
    half = dtype in (torch.float16, torch.bfloat16)
    own = "half" if half else "tf32" if tf32 else "3xtf32"
    best = max(gpu.peak(own), gpu.peak("float32") if own == "3xtf32" else 0.0)
    memory, compute = moved / gpu.bandwidth, operations / best
    floor = max(memory, compute)
    taken = max(cycles / gpu.clock, operations / gpu.peak(own), memory)
    return Estimate(
        name,
        tile,
        splits,
        waves or None,
        "compute" if compute > memory else "memory",
        floor,
        floor / taken if cycles else None,
    )
