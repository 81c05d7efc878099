"""The ops' Python faces, one file each."""

from .add import residual_add
from .conv import conv1x1, conv2d, convolve2d
from .linear import linear
from .pool import adaptive_avg_pool2d, avg_pool2d, global_avg_pool2d, max_pool2d

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "conv1x1",
    "conv2d",
    "convolve2d",
    "global_avg_pool2d",
    "linear",
    "max_pool2d",
    "residual_add",
]
