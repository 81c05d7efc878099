"""The convolutions that every backend's suite runs, and their operands; needs torch alone."""

from __future__ import annotations

import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# (N, C, H, W, K, R, S, stride, padding, dilation, groups): every algorithm row, panels that are
# not full, tiles of every width, taps outside the image, phases of the input gradient without tap.
CASES = {
    "direct 3x3": (2, 5, 9, 13, 37, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "direct planar chunks": (1, 33, 12, 17, 11, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "direct many channels": (1, 130, 7, 6, 48, 3, 2, (1, 1), (1, 1), (1, 1), 1),
    "stem": (1, 3, 31, 27, 20, 7, 5, (2, 3), (3, 2), (1, 1), 1),
    "strided, dilated": (2, 6, 17, 19, 10, 3, 2, (3, 2), (2, 1), (2, 3), 1),
    "dilated by its stride": (2, 16, 11, 9, 24, 3, 3, (2, 2), (2, 1), (2, 4), 1),
    "to one column": (2, 16, 9, 3, 24, 2, 3, (1, 1), (1, 0), (1, 1), 1),
    "stride past the kernel": (1, 4, 11, 14, 9, 1, 2, (3, 4), (0, 0), (1, 1), 1),
    "stride past the input": (2, 8, 1, 5, 16, 3, 3, (2, 3), (1, 1), (1, 1), 1),
    "one row": (3, 9, 1, 25, 8, 1, 3, (1, 1), (0, 1), (1, 1), 1),
    "wide": (1, 2, 3, 450, 5, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "grouped": (2, 12, 8, 11, 18, 3, 3, (1, 2), (1, 1), (1, 1), 3),
    "dilated past the image": (1, 7, 10, 12, 9, 3, 3, (1, 1), (11, 13), (11, 13), 1),
    "narrow groups": (1, 24, 9, 11, 24, 3, 3, (1, 2), (1, 1), (1, 1), 6),
    "1x1": (2, 19, 7, 9, 33, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "1x1 of several blocks": (2, 66, 15, 31, 21, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "1x1 to many channels": (1, 64, 3, 7, 199, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "1x1 in groups": (2, 48, 5, 6, 14, 1, 1, (1, 1), (0, 0), (1, 1), 2),
    "1x1 strided": (2, 19, 7, 9, 33, 1, 1, (2, 3), (0, 0), (1, 1), 1),
    "1x1 padded": (1, 4, 5, 6, 7, 1, 1, (2, 1), (1, 2), (1, 1), 1),
    "1x1 of one pixel": (1, 1051, 1, 1, 45, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "1x1 of a batch of pixels": (7, 37, 1, 1, 1050, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "1x1 of few pixels": (2, 530, 3, 3, 61, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "1x1 of few pixels in groups": (1, 34, 4, 5, 22, 1, 1, (2, 2), (0, 0), (1, 1), 2),
    "rows": (2, 3, 11, 45, 20, 3, 3, (1, 1), (1, 2), (1, 1), 1),
    "rows of few outputs": (1, 9, 23, 31, 3, 4, 2, (2, 1), (1, 1), (1, 2), 1),
    "rows in groups": (2, 12, 8, 33, 6, 3, 3, (1, 1), (1, 1), (1, 1), 3),
    "rows of 1x1": (2, 70, 6, 13, 50, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "rows in blocks": (1, 200, 6, 25, 1300, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "rows of 1x1 to few channels": (2, 300, 7, 9, 20, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "rows of 1x1 of few inputs": (2, 3, 6, 13, 29, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "rows of a stem of stride 2": (2, 3, 9, 31, 19, 3, 3, (2, 2), (1, 1), (1, 1), 1),
    "rows of a stem of stride 3": (1, 4, 11, 47, 9, 2, 3, (1, 3), (1, 1), (1, 2), 1),
    "rows of a stem of stride 4": (1, 2, 13, 127, 8, 5, 5, (4, 4), (2, 2), (1, 1), 1),
    "winograd 4x4": (2, 20, 13, 18, 37, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "winograd 4x4 images": (5, 12, 7, 9, 16, 3, 3, (1, 1), (1, 0), (1, 1), 1),
    "winograd 4x4 blocks": (1, 18, 33, 70, 13, 3, 3, (1, 1), (0, 2), (1, 1), 1),
    "winograd 4x4 chunks": (1, 270, 9, 10, 12, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "winograd 2x2": (1, 17, 6, 7, 40, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "winograd 5x5": (1, 19, 11, 14, 33, 5, 5, (1, 1), (2, 1), (1, 1), 1),
    "winograd 5x5 gradient": (1, 12, 25, 23, 13, 5, 5, (1, 1), (2, 2), (1, 1), 1),
    "winograd groups": (1, 26, 8, 11, 24, 3, 3, (1, 1), (1, 1), (1, 1), 2),
    "winograd dilated": (2, 16, 19, 17, 20, 3, 3, (1, 1), (2, 3), (2, 3), 1),
    "winograd strided 4x4": (1, 50, 37, 43, 52, 3, 3, (2, 2), (1, 0), (1, 1), 1),
    "winograd strided 2x2": (2, 49, 13, 18, 57, 3, 3, (2, 2), (1, 2), (1, 1), 1),
    "winograd strided gradient": (1, 98, 28, 30, 114, 3, 3, (2, 2), (1, 1), (1, 1), 2),
    "depthwise": (2, 35, 9, 11, 35, 3, 3, (1, 1), (1, 1), (1, 1), 35),
    "depthwise strided": (1, 18, 12, 23, 18, 5, 3, (2, 3), (2, 1), (1, 2), 18),
    "depthwise stride 2": (1, 35, 12, 29, 35, 3, 3, (1, 2), (1, 1), (1, 1), 35),
    "depthwise 3 rows of taps": (1, 3, 8, 37, 3, 3, 2, (1, 2), (1, 1), (1, 1), 3),
    "depthwise 5 rows of taps": (1, 3, 8, 37, 3, 5, 3, (1, 1), (2, 1), (1, 2), 3),
    "depthwise 7 rows of taps": (2, 3, 8, 37, 3, 7, 2, (1, 1), (3, 1), (1, 1), 3),
    "depthwise 8 short rows": (1, 3, 8, 4, 3, 3, 3, (1, 1), (1, 1), (1, 1), 3),
    "depthwise 7 short rows": (1, 3, 7, 4, 3, 5, 5, (1, 1), (2, 2), (1, 1), 3),
    "depthwise 11 short rows": (1, 3, 11, 3, 3, 3, 3, (1, 1), (1, 1), (1, 1), 3),
    "depthwise past the input": (1, 24, 9, 1, 24, 3, 3, (2, 2), (1, 1), (1, 1), 24),
    "depthwise multiplier": (2, 4, 9, 7, 12, 3, 2, (1, 2), (1, 0), (1, 1), 4),
}
LAYOUTS = {
    "nchw": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}


def values(size, generator, dtype):
    """Normal values; small whole numbers in float64, so that the float64 truth is exact."""
    t = torch.randn(size, generator=generator, dtype=torch.float64)
    return (8 * t).round() if dtype == torch.float64 else t.to(dtype)


def make(case, dtype, layout="nchw", seed=0):
    n, c, h, w, k, r, s, stride, padding, dilation, groups = case
    g = torch.Generator().manual_seed(seed)
    x, wt, b = (values(size, g, dtype) for size in ((n, c, h, w), (k, c // groups, r, s), (k,)))
    return LAYOUTS[layout](x), wt, b, (stride, padding, dilation, groups)


def gradients(function, x, w, b, window, dy):
    x, w, b = (t.detach().clone(memory_format=torch.preserve_format) for t in (x, w, b))
    for t in (x, w, b):
        t.requires_grad_()
    y = function(x, w, b, *window)
    return (y.detach(), *torch.autograd.grad(y, (x, w, b), dy))


# What runs: a part of the kernel's name, and a problem (as CASES) and dtype that it takes.
KERNELS = {
    "conv1x1_f16": ((2, 24, 7, 9, 40, 1, 1, (2, 1), (0, 0), (1, 1), 1), torch.float16),
    "conv_implicit_gemm_bf16": ((1, 16, 9, 7, 24, 3, 3, (1, 2), (1, 1), (1, 1), 1), torch.bfloat16),
    "conv_implicit_gemm_f32": ((1, 12, 9, 7, 24, 3, 2, (1, 1), (1, 0), (2, 1), 1), torch.float32),
    "conv_stem_bf16": ((2, 3, 19, 23, 40, 7, 5, (2, 2), (3, 2), (1, 1), 1), torch.bfloat16),
    "conv_stem_f32": ((1, 1, 9, 17, 6, 5, 5, (1, 1), (2, 2), (1, 1), 1), torch.float32),
    "conv_depthwise": ((1, 24, 9, 7, 24, 3, 3, (1, 2), (1, 1), (1, 1), 24), torch.float16),
    "conv_direct": ((1, 5, 9, 7, 6, 3, 3, (1, 1), (1, 1), (1, 1), 1), torch.float64),
}


def more_channels_than_32_bits_count():
    """Input and weight of a problem whose last row's launcher refuses it: a value, expanded."""
    return (torch.ones(1, 1, 1, 1).double().expand(1, 1 << 31, 1, 1) for _ in range(2))


REFUSED = r"kernel conv_direct failed: channels .*input \[1, 2147483648, 1, 1\]"
