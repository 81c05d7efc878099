"""Torch side of the convolution: tensors to the arguments of the chosen kernel.

Each function fills the output that it is given; values were checked when that was made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import tiles
from .conv1x1 import conv1x1
from .conv_depthwise import conv_depthwise
from .conv_implicit_gemm import conv_implicit_gemm
from .conv_stem import stem_problem, stem_weights, stem_window
from .launch import (
    block,
    cdiv,
    channels_last,
    common_unit,
    device_of,
    is_wide,
    launch,
    plane_unit,
    rows_of_filters,
    strides,
    unit,
)
from .problem import FORWARD, INPUT_GRAD, ConvProblem, plan, problem_of
from .sums import add_parts, new_parts

MOST_PHASES = 1024  # of an input gradient; beyond, its zeros are multiplied


def conv2d(y, input, weight, bias, residual, *settings) -> None:
    """y = act(conv(input, weight) + bias + residual)."""
    *window, activation, precision = settings
    p = problem_of(input, weight, y, window, precision)
    if y.numel() == 0:
        return
    algorithm = plan(p, FORWARD)
    out = y
    bias = None if bias is None else bias.contiguous()
    if algorithm == "depthwise":
        _depthwise(p, input, weight, y, bias, residual, activation, gradient=False)
        return
    if algorithm == "conv1x1" and (by := plane_unit(p.strides, input, y, residual)):
        w = rows_of_filters(weight)
        _planar_gemm(p, input, w, y, bias, residual, activation, by)
        return
    if not p.is_read_as_it_lies:
        input, out, residual = (
            channels_last(input),
            _rows_like(y),
            _optional(residual, channels_last),
        )
    if algorithm == "stem":
        p, input, weight = stem_problem(p), stem_window(p, input), stem_weights(p, weight)
    else:
        weight = rows_of_filters(weight)
        input, weight = _copied_asynchronously(p, input, weight)
    _gemm(p, input, weight, out, bias, residual, activation, algorithm, gradient=False)
    if out is not y:
        y.copy_(out)


def conv2d_input_grad(dx, grad, weight, height, width, *settings) -> None:
    """dx of y = conv(x, weight), grad being that of y."""
    *window, precision = settings
    p = problem_of(dx, weight, grad, window, precision)
    if dx.numel() == 0:
        return
    if p.stride_h * p.stride_w > MOST_PHASES:
        p, grad = _unstrided(p, grad)
    algorithm = plan(p, INPUT_GRAD)
    if algorithm == "depthwise":
        _depthwise(p, grad, weight, dx, None, None, 0, gradient=True)
        return
    filters = rows_of_filters(weight)  # (K, R, S, C / G)
    in_place = _are_read_transposed(filters)
    if algorithm == "conv1x1" and (by := plane_unit(p.strides, grad, dx)):
        w = filters if in_place else filters.transpose(0, 3).contiguous()
        _planar_gemm(p, grad, w, dx, None, None, 0, by, by_depth=not in_place)
        return
    out = dx
    if not p.is_read_as_it_lies:
        grad, out = channels_last(grad), _rows_like(dx)
    if not in_place or not _is_copied_asynchronously(p, grad, p.K // p.G):
        # (G, K / G, R, S, C / G) to rows of (C, R, S), the output channels of a group innermost.
        filters = filters.unflatten(0, (p.G, -1)).permute(0, 4, 2, 3, 1).flatten(0, 1).contiguous()
        grad, filters = _copied_asynchronously(p, grad, filters)
        in_place = False
    _gemm(p, grad, filters, out, None, None, 0, algorithm, gradient=True, by_depth=not in_place)
    if out is not dx:
        dx.copy_(out)


def _are_read_transposed(filters: Tensor) -> bool:
    """Whether an input gradient takes them as they lie: tensor cores transpose half types only, and
    copies of less than 4 bytes are not asynchronous."""
    return filters.element_size() == 2 and filters.shape[3] % 2 == 0


def _unstrided(p: ConvProblem, grad: Tensor) -> tuple[ConvProblem, Tensor]:
    """The problem of stride 1 whose output's gradient is `grad` with zeros between its values."""
    height = p.H + p.pad_t + p.pad_b - p.dil_h * (p.R - 1)
    width = p.W + p.pad_l + p.pad_r - p.dil_w * (p.S - 1)
    wide = grad.new_zeros(p.N, p.K, height, width)
    wide[:, :, :: p.stride_h, :: p.stride_w] = grad
    return p._replace(P=height, Q=width, stride_h=1, stride_w=1), wide


def _rows_like(t: Tensor) -> Tensor:
    """Where rows of channels are written: the tensor itself, or one of its size to copy from."""
    if t.shape[1] == 1 or t.stride(1) == 1:
        return t
    return torch.empty_permuted(t.shape, (0, 2, 3, 1), dtype=t.dtype, device=t.device)


def _copied_asynchronously(p: ConvProblem, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """x and rows of weights (K, R, S, C), channels padded to 8 where they are odd in a half type.

    Asynchronous copies take 4 bytes at least; without them nothing is pipelined.
    """
    c = w.shape[3]
    if _is_copied_asynchronously(p, x, c):
        return x, w
    wider = x.new_zeros(x.shape[0], *x.shape[2:], 8 * cdiv(c, 8))
    wider[..., :c] = x.permute(0, 2, 3, 1)
    rows = w.new_zeros(*w.shape[:3], wider.shape[3])
    rows[..., :c] = w
    return wider.permute(0, 3, 1, 2), rows


def _is_copied_asynchronously(p: ConvProblem, x: Tensor, depth: int) -> bool:
    """Whether it is as it lies, or is not to be helped."""
    return p.G > 1 or p.is_read_as_it_lies or unit(x, depth) * x.element_size() >= 4


def _optional(t: Tensor | None, function) -> Tensor | None:
    return None if t is None else function(t)


def _phases(p: ConvProblem) -> tuple[tuple[int, ...], tuple[int, int], int]:
    """(common, inverse) of both axes, the most taps of a phase, and the number of phases."""
    numbers, most = [], []
    for stride, dil, taps in ((p.stride_h, p.dil_h, p.R), (p.stride_w, p.dil_w, p.S)):
        common = math.gcd(stride, dil)
        step = stride // common
        numbers += [common, pow(dil // common, -1, step) if step > 1 else 0]
        most.append(cdiv(taps, step))
    return tuple(numbers), tuple(most), p.stride_h * p.stride_w


def _gemm(p, x, w, y, bias, residual, activation, algorithm, gradient, by_depth=True) -> None:
    """Forward, or with the roles of C and K exchanged the input gradient.

    w is (outputs, R, S, depth) by_depth, else (depth, R, S, outputs), of G groups.
    """
    channels, depth = (p.C if gradient else p.K) // p.G, w.shape[3 if by_depth else 0]
    depth = depth if by_depth else depth // p.G
    by, y_by = unit(x, depth), unit(y, channels, residual)
    precision = tiles.precision_of(p.dtype, p.precision)
    numbers, most, phases = (0, 0, 0, 0), (p.R, p.S), 1
    height, width = y.shape[2:]
    if gradient and algorithm != "conv1x1":
        numbers, most, phases = _phases(p)
        height, width = cdiv(height, p.stride_h), cdiv(width, p.stride_w)
    outputs, device = p.N * height * width, device_of(y)
    largest = tiles.CROWDED if residual is not None or phases > 1 else tiles.PLAIN
    if y_by * y.element_size() < 4:  # stored one by one
        largest = tiles.RAGGED
    tile = tiles.choose_tile(precision, device, outputs, channels, depth, largest, p.G * phases)
    wide = is_wide(p.N, (p.H + p.pad_t + p.pad_b, p.W + p.pad_l + p.pad_r), (p.P, p.Q))
    if wide:  # places of 64 bits would be spilled
        tile = tile._replace(BM=max(16, tile.BM // 4))
    blocks, steps = cdiv(outputs, tile.BM) * cdiv(channels, tile.BN), cdiv(depth, tile.BK)
    steps *= p.R * p.S
    splits = 1 if phases > 1 else tiles.choose_splits(blocks * p.G, steps, device)
    each = cdiv(steps, splits)
    splits = cdiv(steps, each)
    out, epilogue, y_strides = y, (bias, residual), strides(y, y_by)
    if splits > 1:
        out = new_parts(y, splits, p.N * y.shape[2] * y.shape[3], channels * p.G)
        epilogue = None, None
    w_by = common_unit(16 // w.element_size(), w.shape[3])
    constants = dict(
        UNIT=by, Y_UNIT=y_by, W_UNIT=w_by, W_BY_DEPTH=by_depth, SPLIT=splits > 1,
        EVEN_C=depth % tile.BK == 0, WIDE=wide,
        PRECISION=precision, ACTIVATION=0 if splits > 1 else activation,
        BM=tile.BM, BN=tile.BN, BK=tile.BK, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    places = (*y_strides, *strides(residual, y_by))
    if algorithm == "conv1x1":
        n, h, w_, c = strides(x, by)
        launch(
            conv1x1, (blocks, 1, splits), y, x, w, out, *epilogue, p.N, depth // by,
            channels // y_by, *y.shape[2:], n, h * p.stride_h, w_ * p.stride_w, c, *places,
            w.shape[3] // w_by, each,
            C_UNIT=by, K_UNIT=y_by, PLANAR=False, **constants,
        )  # fmt: skip
    else:
        launch(
            conv_implicit_gemm, (blocks, p.G, phases * splits), y, x, w, out, *epilogue,
            p.N, *x.shape[2:], depth // by, channels // y_by, *y.shape[2:],
            *strides(x, by), *places,
            p.stride_h, p.stride_w, p.pad_t, p.pad_l, p.dil_h, p.dil_w, *numbers,
            w.stride(0) // w_by, w.shape[3] // w_by, each,
            R=p.R, S=p.S, FIRST_R=most[0], FIRST_S=most[1], GRADIENT=gradient, **constants,
        )  # fmt: skip
    if splits > 1:
        add_parts(
            out, y, bias, residual, (p.N, *y.shape[2:]), strides(y), strides(residual), activation
        )


def _planar_gemm(p, x, w, y, bias, residual, activation, by, by_depth=True) -> None:
    """A 1x1 convolution of planes whose sizes and strides are multiples of `by`; w as `_gemm`'s."""
    (n, channels, height, width), depth = y.shape, x.shape[1]
    precision, w_by = (
        tiles.precision_of(p.dtype, p.precision), common_unit(16 // w.element_size(), w.shape[3])
    )  # fmt: skip
    plane = height * width
    tile = tiles.choose_tile(precision, device_of(y), plane, channels, depth, tiles.PLAIN, n)
    c_by, k_by = (common_unit(16 // x.element_size(), size) for size in (depth, channels))

    def places(t):  # of n, h, w, c
        return (0, 0, 0, 0) if t is None else (t.stride(0) // by, 0, 0, t.stride(1) // by)

    launch(
        conv1x1, (cdiv(plane, tile.BM) * cdiv(channels, tile.BN), n, 1), y, x, w, y, bias, residual,
        n, depth // c_by, channels // k_by, 1, plane // by, *places(x), *places(y),
        *places(residual), w.shape[3] // w_by, 0, UNIT=by, Y_UNIT=by, C_UNIT=c_by, K_UNIT=k_by,
        W_UNIT=w_by, W_BY_DEPTH=by_depth, PLANAR=True, SPLIT=False,
        EVEN_C=depth % tile.BK == 0, WIDE=False, PRECISION=precision, ACTIVATION=activation,
        BM=tile.BM, BN=tile.BN, BK=tile.BK, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _depthwise(p, x, w, y, bias, residual, activation, gradient) -> None:
    c, k = p.C // p.G, p.K // p.G
    if gradient:  # [r, s, i, c]: w[g k + i, c, r, s] of each input channel
        numbers, most, phases = _phases(p)
        w = w.unflatten(0, (p.G, k)).permute(3, 4, 1, 0, 2).contiguous()
        inside, out, channels = k, c, p.C
        height, width = cdiv(p.H, p.stride_h), cdiv(p.W, p.stride_w)
    else:
        numbers, most, phases, inside, out, channels = (0,) * 4, (p.R, p.S), 1, c, k, p.K
        w, height, width = w.permute(2, 3, 1, 0).contiguous(), p.P, p.Q
    by, y_by = unit(x, x.shape[1]), unit(y, channels, residual)
    bm, bc = block(y, x, residual, innermost=tiles.depthwise_block(y.element_size()))
    launch(
        conv_depthwise, (cdiv(p.N * height * width, bm) * cdiv(channels, bc), 1, phases), y,
        x, w, y, bias, residual, p.N, *x.shape[2:], channels // y_by, *y.shape[2:],
        *strides(x, by), *strides(y, y_by), *strides(residual, y_by),
        p.stride_h, p.stride_w, p.pad_t, p.pad_l, p.dil_h, p.dil_w, *numbers,
        UNIT=by, Y_UNIT=y_by, R=p.R, S=p.S, FIRST_R=most[0], FIRST_S=most[1],
        **tiles.taps_at_once(*most, 2 * inside), IN=inside, OUT=out, GRADIENT=gradient,
        WIDE=is_wide(p.N, (p.H + p.pad_t + p.pad_b, p.W + p.pad_l + p.pad_r), (p.P, p.Q)),
        ACTIVATION=activation, BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip
