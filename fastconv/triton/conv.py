"""Torch side of the convolution: tensors to the arguments of the chosen kernel.

Each function fills the output that it is given; values were checked when that was made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import tiles
from .conv1x1 import conv1x1
from .conv_bias_grad import conv_bias_grad
from .conv_depthwise import conv_depthwise, conv_depthwise_weight_grad
from .conv_implicit_gemm import conv_implicit_gemm
from .conv_stem import stem_problem, stem_weight_grad_of, stem_weights, stem_window
from .conv_weight_grad import conv_weight_grad
from .launch import (
    INTERPRETING,
    block,
    cdiv,
    channels_last,
    device_of,
    is_wide,
    launch,
    plane_unit,
    strides,
    unit,
)
from .problem import FORWARD, INPUT_GRAD, WEIGHT_GRAD, ConvProblem, plan
from .split_k import add_splits

MOST_PHASES = 1024  # of an input gradient; beyond, its zeros are multiplied


def conv2d(y, input, weight, bias, residual, *settings) -> None:
    """y = act(conv(input, weight) + bias + residual)."""
    *window, activation, precision = settings
    p = _problem(input, weight, y, window, precision)
    if y.numel() == 0:
        return
    algorithm = plan(p, FORWARD)
    out = y
    bias = None if bias is None else bias.contiguous()
    if algorithm == "depthwise":
        _depthwise(p, input, weight, y, bias, residual, activation, gradient=False)
        return
    if algorithm == "conv1x1" and (by := plane_unit(p.strides, input, y, residual)):
        _planar_gemm(p, input, weight, y, bias, residual, activation, by)
        return
    if not p.is_read_as_it_lies:
        input, out, residual = _rows(input), _rows_like(y), _optional(residual, _rows)
    if algorithm == "stem":
        p, input, weight = stem_problem(p), stem_window(p, input), stem_weights(p, weight)
    else:
        weight = weight.permute(0, 2, 3, 1).contiguous()
        input, weight = _copied_asynchronously(p, input, weight)
    _gemm(p, input, weight, out, bias, residual, activation, algorithm, gradient=False)
    if out is not y:
        y.copy_(out)


def conv2d_input_grad(dx, grad, weight, height, width, *settings) -> None:
    """dx of y = conv(x, weight), grad being that of y."""
    *window, precision = settings
    p = _problem(dx, weight, grad, window, precision)
    if dx.numel() == 0:
        return
    if p.stride_h * p.stride_w > MOST_PHASES:
        p, grad = _unstrided(p, grad)
    algorithm = plan(p, INPUT_GRAD)
    if algorithm == "depthwise":
        _depthwise(p, grad, weight, dx, None, None, 0, gradient=True)
        return
    if algorithm == "conv1x1" and (by := plane_unit(p.strides, grad, dx)):
        _planar_gemm(p, grad, weight.transpose(0, 1), dx, None, None, 0, by)
        return
    out = dx
    if not p.is_read_as_it_lies:
        grad, out = _rows(grad), _rows_like(dx)
    # (G, K / G, C / G, R, S) to rows of (C, R, S), the output channels of a group innermost.
    rows = weight.unflatten(0, (p.G, -1)).permute(0, 2, 3, 4, 1).contiguous()
    if p.G == 1:
        rows = rows[0]
        grad, rows = _copied_asynchronously(p, grad, rows)
    _gemm(p, grad, rows, out, None, None, 0, algorithm, gradient=True)
    if out is not dx:
        dx.copy_(out)


def _unstrided(p: ConvProblem, grad: Tensor) -> tuple[ConvProblem, Tensor]:
    """The problem of stride 1 whose output's gradient is `grad` with zeros between its values."""
    height = p.H + p.pad_t + p.pad_b - p.dil_h * (p.R - 1)
    width = p.W + p.pad_l + p.pad_r - p.dil_w * (p.S - 1)
    wide = grad.new_zeros(p.N, p.K, height, width)
    wide[:, :, :: p.stride_h, :: p.stride_w] = grad
    return p._replace(P=height, Q=width, stride_h=1, stride_w=1), wide


def conv2d_weight_grad(dw, input, grad, kernel_h, kernel_w, *settings) -> None:
    """dw of y = conv(input, w), grad being that of y."""
    *window, precision = settings
    p = _problem(input, dw, grad, window, precision)
    algorithm = plan(p, WEIGHT_GRAD)
    if grad.numel() == 0:
        dw.zero_()
        return
    if algorithm == "depthwise":
        _depthwise_weight_grad(p, input, grad, dw)
        return
    if not p.is_read_as_it_lies:
        input, grad = _rows(input), _rows(grad)
    if algorithm == "stem":
        rows = torch.empty_like(stem_weights(p, dw))
        _weight_grad(stem_problem(p), stem_window(p, input), grad, rows.permute(0, 3, 1, 2))
        dw.copy_(stem_weight_grad_of(p, rows))
        return
    _weight_grad(p, input, grad, dw)


def conv2d_bias_grad(db, grad) -> None:
    """db[k] = the sum of grad over n, p and q."""
    _bias_grad(db, grad, None, None, 0)


def activation_bias_grad(outputs, grad, output, activation) -> None:
    """dz = grad times the activation's derivative at its output, and db, its sum."""
    dz, db = outputs
    _bias_grad(db, grad, output, dz, activation)


def conv2d_weight_bias_grad(outputs, input, grad, kernel_h, kernel_w, *settings) -> None:
    """dw and db; of the sum before an activation where its output is given."""
    (dw, db), (*settings, output, activation) = outputs, settings
    if activation:
        dz = torch.empty_like(output)
        _bias_grad(db, grad, output, dz, activation)
        grad = dz
    else:
        _bias_grad(db, grad, None, None, 0)
    conv2d_weight_grad(dw, input, grad, kernel_h, kernel_w, *settings)


def _bias_grad(db, grad, output, dz, activation) -> None:
    """db, the sum of grad; where an activation's `output` is given, of dz, which it makes."""
    n, k, p, q = grad.shape
    by = unit(grad, k, output, dz)
    bm, bc = block(grad, output, dz)
    z, to = (grad, grad) if output is None else (output, dz)
    steps, columns = cdiv(n * p * q, bm), cdiv(k, bc)
    splits = tiles.choose_splits(columns, steps, device_of(grad), 4)
    partial = _partial(grad, splits, k)
    launch(
        conv_bias_grad, (columns, 1, splits), grad, grad, z, to, partial, n, k // by, p, q,
        *strides(grad, by), *strides(z, by), *strides(to, by), cdiv(steps, splits),
        UNIT=by, ACTIVATION=activation, MASKED=output is not None, WIDE=is_wide((p, q)), BM=bm,
        BC=bc, num_warps=4,
    )  # fmt: skip
    _add_splits(partial, db, None, None, splits, (1, 1, 1), k, (0, 0, 0, 1), (0, 0, 0, 0), 0)


def _problem(input, weight, output, window, precision) -> ConvProblem:
    return ConvProblem(
        *input.shape, weight.shape[0], *weight.shape[2:], *output.shape[2:], *window,
        input.dtype, precision,
    )  # fmt: skip


def _rows(t: Tensor) -> Tensor:
    return channels_last(t)


def _rows_like(t: Tensor) -> Tensor:
    """Where rows of channels are written: the tensor itself, or one of its size to copy from."""
    if t.shape[1] == 1 or t.stride(1) == 1:
        return t
    return torch.empty_like(t, memory_format=torch.channels_last)


def _copied_asynchronously(p: ConvProblem, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """x and rows of weights (K, R, S, C), channels padded to 8 where they are odd in a half type.

    Asynchronous copies take 4 bytes at least; without them nothing is pipelined.
    """
    c = w.shape[3]
    if p.G > 1 or p.is_read_as_it_lies or unit(x, c) * x.element_size() >= 4:
        return x, w
    wider = x.new_zeros(x.shape[0], *x.shape[2:], 8 * cdiv(c, 8))
    wider[..., :c] = x.permute(0, 2, 3, 1)
    rows = w.new_zeros(*w.shape[:3], wider.shape[3])
    rows[..., :c] = w
    return wider.permute(0, 3, 1, 2), rows


def _optional(t: Tensor | None, function) -> Tensor | None:
    return None if t is None else function(t)


def _partial(like: Tensor, *size: int) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(size, dtype=dtype, device=like.device)


def _phases(p: ConvProblem) -> tuple[tuple[int, ...], tuple[int, int], int]:
    """(common, inverse) of both axes, the most taps of a phase, and the number of phases."""
    numbers, most = [], []
    for stride, dil, taps in ((p.stride_h, p.dil_h, p.R), (p.stride_w, p.dil_w, p.S)):
        common = math.gcd(stride, dil)
        step = stride // common
        numbers += [common, pow(dil // common, -1, step) if step > 1 else 0]
        most.append(cdiv(taps, step))
    return tuple(numbers), tuple(most), p.stride_h * p.stride_w


def _gemm(p, x, w, y, bias, residual, activation, algorithm, gradient) -> None:
    """Forward, or with the roles of C and K exchanged the input gradient."""
    channels, depth = (p.C if gradient else p.K) // p.G, w.shape[-1]
    by, y_by = unit(x, depth), unit(y, channels, residual)
    precision = tiles.precision_of(p.dtype, p.precision)
    numbers, most, phases = (0, 0, 0, 0), (p.R, p.S), 1
    height, width = y.shape[2:]
    if gradient and algorithm != "conv1x1":
        numbers, most, phases = _phases(p)
        height, width = cdiv(height, p.stride_h), cdiv(width, p.stride_w)
    outputs, device = p.N * height * width, device_of(y)
    largest = tiles.CROWDED if residual is not None or gradient else tiles.PLAIN
    if y_by * y.element_size() < 4:  # stored one by one
        largest = tiles.RAGGED
    tile = tiles.choose_tile(precision, device, outputs * p.G * phases, channels, depth, largest)
    blocks, steps = cdiv(outputs, tile.BM) * cdiv(channels, tile.BN), cdiv(depth, tile.BK)
    steps *= p.R * p.S
    splits = 1 if phases > 1 else tiles.choose_splits(blocks * p.G, steps, device)
    each = cdiv(steps, splits)
    splits = cdiv(steps, each)
    wide = is_wide((p.H + p.pad_t + p.pad_b, p.W + p.pad_l + p.pad_r), (p.P, p.Q))

    out, epilogue, y_strides = y, (bias, residual), strides(y, y_by)
    if splits > 1:
        out, epilogue = (
            _partial(y, splits, p.N * y.shape[2] * y.shape[3], channels * p.G),
            (None,) * 2,
        )
    constants = dict(
        UNIT=by, Y_UNIT=y_by, SPLIT=splits > 1, EVEN_C=depth % tile.BK == 0, WIDE=wide,
        PRECISION=precision, ACTIVATION=0 if splits > 1 else activation,
        BM=tile.BM, BN=tile.BN, BK=tile.BK, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    places = (*y_strides, *strides(residual, y_by))
    if algorithm == "conv1x1":
        n, h, w_, c = strides(x, by)
        launch(
            conv1x1, (blocks, 1, splits), y, x, w, out, *epilogue, p.N, depth // by,
            channels // y_by, *y.shape[2:], n, h * p.stride_h, w_ * p.stride_w, c, *places, each,
            C_UNIT=by, K_UNIT=y_by, PLANAR=False, **constants,
        )  # fmt: skip
    else:
        launch(
            conv_implicit_gemm, (blocks, p.G, phases * splits), y, x, w, out, *epilogue,
            p.N, *x.shape[2:], depth // by, channels // y_by, *y.shape[2:],
            *strides(x, by), *places,
            p.stride_h, p.stride_w, p.pad_t, p.pad_l, p.dil_h, p.dil_w, *numbers, each,
            R=p.R, S=p.S, FIRST_R=most[0], FIRST_S=most[1], GRADIENT=gradient, **constants,
        )  # fmt: skip
    if splits > 1:
        _add_splits(
            out, y, bias, residual, splits, (p.N, *y.shape[2:]), channels * p.G,
            strides(y), strides(residual), activation,
        )  # fmt: skip


def _planar_gemm(p, x, w, y, bias, residual, activation, by) -> None:
    """A 1x1 convolution of planes whose sizes and strides are multiples of `by`; w (K, C, 1, 1)."""
    (n, channels, height, width), depth = y.shape, x.shape[1]
    w, precision = w.flatten(1).contiguous(), tiles.precision_of(p.dtype, p.precision)
    plane = height * width
    tile = tiles.choose_tile(precision, device_of(y), n * plane, channels, depth, tiles.PLAIN)
    c_by = math.gcd(16 // x.element_size(), depth)

    def places(t):  # of n, h, w, c
        return (0, 0, 0, 0) if t is None else (t.stride(0) // by, 0, 0, t.stride(1) // by)

    launch(
        conv1x1, (cdiv(plane, tile.BM) * cdiv(channels, tile.BN), n, 1), y, x, w, y, bias, residual,
        n, depth // c_by, channels, 1, plane // by, *places(x), *places(y), *places(residual), 0,
        UNIT=by, Y_UNIT=by, C_UNIT=c_by, K_UNIT=1, PLANAR=True, SPLIT=False,
        EVEN_C=depth % tile.BK == 0, WIDE=False, PRECISION=precision, ACTIVATION=activation,
        BM=tile.BM, BN=tile.BN, BK=tile.BK, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _add_splits(partial, y, bias, residual, splits, rows, width, places, residual_places, act):
    bm, bn = tiles.SUMS if y.is_cuda or not INTERPRETING else tiles.INTERPRETED_SUMS
    launch(
        add_splits, (cdiv(rows[0] * rows[1] * rows[2], bm) * cdiv(width, bn),), y, partial, y, bias,
        residual, splits, *rows, width, *places, *residual_places,
        WIDE=is_wide(rows[1:]), ACTIVATION=act, BM=bm, BN=bn, num_warps=4,
    )  # fmt: skip


def _weight_grad(p, x, dy, dw) -> None:
    """dw (K, C / G, R, S), of any strides."""
    k, c = p.K // p.G, p.C // p.G
    precision = tiles.precision_of(p.dtype, p.precision)
    by, dy_by, device = unit(x, c), unit(dy, k), device_of(x)
    odd = min(by, dy_by) * x.element_size() < 4  # read one by one
    largest = tiles.RAGGED if odd else tiles.PLAIN
    tile = tiles.choose_tile(precision, device, k * p.R * p.S * p.G, c, p.N * p.P * p.Q, largest)
    bq = min(32, tile.BK, max(4, 1 << (p.Q - 1).bit_length()))
    bp = tile.BK // bq
    blocks, steps = cdiv(k, tile.BM) * cdiv(c, tile.BN), p.N * cdiv(p.P, bp) * cdiv(p.Q, bq)
    splits = tiles.choose_splits(blocks * p.G * p.R * p.S, steps, device)
    each = cdiv(steps, splits)
    splits = cdiv(steps, each)
    partial = _partial(x, splits, p.K * p.R * p.S, c)
    launch(
        conv_weight_grad, (blocks * p.R * p.S, p.G, splits), x, dy, x, partial,
        p.N, p.H, p.W, c // by, k // dy_by, p.P, p.Q, p.R, p.S, *strides(dy, dy_by),
        *strides(x, by), p.stride_h, p.stride_w, p.pad_t, p.pad_l, p.dil_h, p.dil_w, each,
        DY_UNIT=dy_by, UNIT=by, PRECISION=precision, BM=tile.BM, BN=tile.BN, BP=bp, BQ=bq,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    places = (dw.stride(0), dw.stride(2), dw.stride(3), dw.stride(1))
    _add_splits(partial, dw, None, None, splits, (p.K, p.R, p.S), c, places, (0,) * 4, 0)


def _depthwise(p, x, w, y, bias, residual, activation, gradient) -> None:
    c, k = p.C // p.G, p.K // p.G
    if gradient:  # [r, s, i, c]: w[g k + i, c, r, s] of each input channel
        numbers, _, phases = _phases(p)
        w = w.unflatten(0, (p.G, k)).permute(3, 4, 1, 0, 2).contiguous()
        inside, out, channels = k, c, p.C
        height, width = cdiv(p.H, p.stride_h), cdiv(p.W, p.stride_w)
    else:
        numbers, phases, inside, out, channels = (0,) * 4, 1, c, k, p.K
        w, height, width = w.permute(2, 3, 1, 0).contiguous(), p.P, p.Q
    by, y_by = unit(x, x.shape[1]), unit(y, channels, residual)
    bm, bc = block(y, x, residual)
    launch(
        conv_depthwise, (cdiv(p.N * height * width, bm) * cdiv(channels, bc), 1, phases), y,
        x, w, y, bias, residual, p.N, *x.shape[2:], channels // y_by, *y.shape[2:],
        *strides(x, by), *strides(y, y_by), *strides(residual, y_by),
        p.stride_h, p.stride_w, p.pad_t, p.pad_l, p.dil_h, p.dil_w, *numbers,
        UNIT=by, Y_UNIT=y_by, R=p.R, S=p.S, IN=inside, OUT=out, GRADIENT=gradient,
        WIDE=is_wide((p.H + p.pad_t + p.pad_b, p.W + p.pad_l + p.pad_r), (p.P, p.Q)),
        ACTIVATION=activation, BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip


def _depthwise_weight_grad(p, x, dy, dw) -> None:
    c = p.C // p.G
    by, dy_by = unit(x, p.C), unit(dy, p.K)
    bm, bc = block(dy, x)
    columns, steps = cdiv(p.K, bc), cdiv(p.N * p.P * p.Q, bm)
    splits = tiles.choose_splits(columns * c * p.R * p.S, steps, device_of(x), 4)
    partial = _partial(x, splits, c * p.R * p.S, p.K)
    launch(
        conv_depthwise_weight_grad, (columns * c * p.R * p.S, 1, splits), x, dy, x, partial,
        p.N, p.H, p.W, p.K // dy_by, p.P, p.Q, p.R, p.S, *strides(dy, dy_by), *strides(x, by),
        p.stride_h, p.stride_w, p.pad_t, p.pad_l, p.dil_h, p.dil_w, cdiv(steps, splits),
        DY_UNIT=dy_by, UNIT=by, IN=c, OUT=p.K // p.G,
        WIDE=is_wide((p.H + p.pad_t + p.pad_b, p.W + p.pad_l + p.pad_r), (p.P, p.Q)),
        BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip
    places = (dw.stride(1), dw.stride(2), dw.stride(3), dw.stride(0))
    _add_splits(partial, dw, None, None, splits, (c, p.R, p.S), p.K, places, (0,) * 4, 0)
