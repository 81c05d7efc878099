"""Speed for exactness, where the caller asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import _C


@contextmanager
def winograd_6x6(allowed: bool = True) -> Iterator[None]:
    """Within it, and in this thread, large maps are convolved by Winograd's F(6x6, 3x3).

    A tile of 6 x 6 outputs takes 64 products per input and output channel where F(4x4, 3x3) takes
    81 for as many outputs, and a direct sum 324; but its transforms round four times as coarsely:
    relative to the result a float32 3x3 of 64 to 256 channels errs by 3e-6 to 6e-6, and its weight
    gradient by up to 17 times what torch's own does. TF32, which
    ``torch.set_float32_matmul_precision("high")`` allows on GPUs, keeps 11 bits of each operand.

    Of the CPU's 3x3 of stride 1, forward and both gradients, on maps where it spares enough
    products (20 x 20 and more, not 14 x 14), of 3,000 outputs in a batch and more; all else is as
    before. A layer alone becomes up to 1.15 times as fast, whole networks hardly (CONTRIBUTING.md).
    A backward pass is within it where ``backward()`` is called within it. Also a decorator::

        with fastconv.winograd_6x6():
            y = model(x)

    Args:
        allowed: False to switch it off again for a part.

    Source: Winograd 1980; Lavin and Gray, arXiv 1509.09308.
    """
    before = _C.set_winograd_6x6(allowed)
    try:
        yield
    finally:
        _C.set_winograd_6x6(before)
