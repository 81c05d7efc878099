"""What the tests on a real GPU share; importing it skips a module where there is none."""

from __future__ import annotations

import pytest
import torch
from conv_cases import LAYOUTS

from fastconv import _C

if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU that this torch can use", allow_module_level=True)
if not _C.cuda:
    pytest.skip("fastconv was built without CUDA", allow_module_level=True)

ACTIVATE = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

# kernel, stride, padding, dilation, ceil_mode
WINDOWS = [
    ((3, 2), (2, 1), (1, 1), 1, False),
    (3, 2, 1, 1, False),
    ((2, 3), (3, 5), 0, 1, True),
    ((2, 3), 1, (1, 0), (3, 2), False),
]


def image(layout, dtype, size=(2, 24, 19, 14)):
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    return LAYOUTS[layout](x.cuda())


def poison_cache(device="cuda"):
    """Leaves NaN in what torch's allocator hands out next: a kernel that writes too little shows.

    Blocks of several sizes, since the allocator keeps small and large ones apart.
    """
    for size in (1 << 10, 1 << 14, 1 << 18, 1 << 22):
        torch.full((size,), float("nan"), device=device)
