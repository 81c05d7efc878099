"""Stems: convolutions of at most 4 input channels, whose filter rows are contiguous in memory.

Channels are padded to 4, so that S C becomes one row of 4 S elements, and a pixel of the padded
input begins a row that overlaps the next one's. The convolution is then one of kernel R x 1 over
4 S channels, which `conv_implicit_gemm` and `conv_weight_grad` run as any other.
"""

from __future__ import annotations

from torch import Tensor

from .problem import ConvProblem


def stem_problem(p: ConvProblem) -> ConvProblem:
    """The same convolution with kernel R x 1 over 4 S channels, nothing padded."""
    return p._replace(
        C=4 * p.S, S=1, H=p.H + p.pad_t + p.pad_b, W=p.W + p.pad_l + p.pad_r - p.S + 1,
        pad_t=0, pad_l=0, pad_b=0, pad_r=0,
    )  # fmt: skip


def stem_window(p: ConvProblem, x: Tensor) -> Tensor:
    """(N, 4 S, H, W) of that problem: a view of the padded input, whose pixels overlap."""
    height, width = p.H + p.pad_t + p.pad_b, p.W + p.pad_l + p.pad_r
    padded = x.new_zeros(p.N, height, width, 4)
    padded[:, p.pad_t : p.pad_t + p.H, p.pad_l : p.pad_l + p.W, : p.C] = x.permute(0, 2, 3, 1)
    size = (p.N, 4 * p.S, height, width - p.S + 1)
    return padded.as_strided(size, (height * width * 4, 1, width * 4, 4))


def stem_weights(p: ConvProblem, w: Tensor) -> Tensor:
    """(K, R, 1, 4 S) of w (K, C, R, S)."""
    rows = w.new_zeros(p.K, p.R, p.S, 4)
    rows[..., : p.C] = w.permute(0, 2, 3, 1)
    return rows.view(p.K, p.R, 1, 4 * p.S)


def stem_weight_grad_of(p: ConvProblem, rows: Tensor) -> Tensor:
    """(K, C, R, S) of (K, R, 1, 4 S)."""
    return rows.view(p.K, p.R, p.S, 4)[..., : p.C].permute(0, 3, 1, 2)
