"""fastconv: hand-written convolution, pooling and residual kernels as torch ops."""

import torch as _torch  # noqa: F401  its libraries must be loaded before the native module

from . import memory, models, nn, ops, testing
from .backend import backend
from .convert import convert
from .explain import build_info, cpu_info, explain
from .ops import (
    adaptive_avg_pool2d,
    avg_pool2d,
    conv1x1,
    conv2d,
    convolve2d,
    global_avg_pool2d,
    linear,
    max_pool2d,
    residual_add,
)
from .precision import winograd_6x6
from .tune import tune

__version__ = "0.1.0"

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "backend",
    "build_info",
    "conv1x1",
    "conv2d",
    "convert",
    "convolve2d",
    "cpu_info",
    "explain",
    "global_avg_pool2d",
    "linear",
    "max_pool2d",
    "memory",
    "models",
    "nn",
    "ops",
    "residual_add",
    "testing",
    "tune",
    "winograd_6x6",
]
