"""Torch side of the gradients that are sums over outputs: of weights and of biases."""

from __future__ import annotations

import torch
from torch import Tensor

from . import tiles
from .conv_bias_grad import conv_bias_grad
from .conv_depthwise import conv_depthwise_weight_grad
from .conv_stem import stem_problem, stem_weight_grad_of, stem_weights, stem_window
from .conv_weight_grad import conv_weight_grad
from .launch import (
    block,
    cdiv,
    channels_last,
    common_unit,
    device_of,
    is_wide,
    launch,
    plane_unit,
    strides,
    unit,
)
from .problem import WEIGHT_GRAD, plan, problem_of
from .sums import NOTHING, add_parts, new_parts


def conv2d_weight_grad(dw, input, grad, kernel_h, kernel_w, *settings) -> None:
    """dw of y = conv(input, w), grad being that of y."""
    *window, precision = settings
    p = problem_of(input, dw, grad, window, precision)
    algorithm = plan(p, WEIGHT_GRAD)
    if grad.numel() == 0:
        dw.zero_()
        return
    if algorithm == "depthwise":
        _depthwise_weight_grad(p, input, grad, dw)
        return
    if not p.is_read_as_it_lies:
        input, grad = channels_last(input), channels_last(grad)
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
    if grad.numel() == 0:
        db.zero_()
        return
    operands = (grad,) if output is None else (grad, output, dz)
    k, device = grad.shape[1], device_of(grad)
    planar = plane_unit((1, 1), *operands)
    by = planar or unit(grad, k, *operands[1:])
    n, p, q = _runs(*operands)
    size = tiles.RUN // (grad.element_size() * (1 if output is None else 2))
    bm = tiles.power_of_two(16, q, tiles.LONGEST_RUN if planar else size // 64)
    bc = tiles.power_of_two(4, k, size // bm if planar else 64)
    steps, columns = n * p * cdiv(q, bm), cdiv(k, bc)
    splits = tiles.choose_splits(columns, steps, device, least=2, resident=4)
    each = cdiv(steps, splits)
    splits = cdiv(steps, each)
    parts = new_parts(grad, splits, k)

    def places(t):  # of n, p, q, k
        by_n, by_k, by_p, by_q = t.stride()
        if planar:
            return by_n // by, by_p // by, by_q, by_k // by
        return by_n // by, by_p // by, by_q // by, by_k

    _, z, to = operands if output is not None else (grad,) * 3
    launch(
        conv_bias_grad, (columns, splits), grad, grad, z, to, parts, n, p,
        q // by if planar else q, k if planar else k // by, *places(grad), *places(z), *places(to),
        each, UNIT=by, PLANAR=planar > 0, ACTIVATION=activation, MASKED=output is not None, BM=bm,
        BC=bc, num_warps=4,
    )  # fmt: skip
    add_parts(parts, db, None, None, (1, 1, 1), NOTHING, NOTHING, 0)


def _runs(*tensors: Tensor) -> tuple[int, int, int]:
    """n, p, q of the longest runs of pixels that are evenly spaced in all of these tensors."""
    n, _, p, q = tensors[0].shape
    if all(t.stride(2) == q * t.stride(3) or p == 1 for t in tensors):
        if all(t.stride(0) == p * q * t.stride(3) or n == 1 for t in tensors):
            return 1, 1, n * p * q
        return n, 1, p * q
    return n, p, q


def _weight_grad(p, x, dy, dw) -> None:
    """dw (K, C / G, R, S), of any strides."""
    k, c, taps = p.K // p.G, p.C // p.G, p.R * p.S
    precision = tiles.precision_of(p.dtype, p.precision)
    by, dy_by, device = unit(x, c), unit(dy, k), device_of(x)
    odd = min(by, dy_by) * x.element_size() < 4  # read one by one
    largest = tiles.RAGGED if odd else tiles.PLAIN
    tile = tiles.choose_tile(
        precision, device, k, c, p.N * p.P * p.Q, largest, taps * p.G, is_split=True
    )
    if odd:
        tile = tile._replace(BK=min(tile.BK, tiles.RAGGED_STEP))
    bq = tiles.power_of_two(4, p.Q, min(32, tile.BK))
    bp = tile.BK // bq
    blocks, steps = cdiv(k, tile.BM) * cdiv(c, tile.BN), p.N * cdiv(p.P, bp) * cdiv(p.Q, bq)
    splits = tiles.choose_splits(blocks * p.G * taps, steps, device)
    each = cdiv(steps, splits)
    splits = cdiv(steps, each)
    out, places = dw, (0, dw.stride(0), *dw.stride()[2:], dw.stride(1))
    if splits > 1:
        out = new_parts(x, splits, p.K * taps, c)
        places = p.K * taps * c, taps * c, p.S * c, c, 1
    dw_by = common_unit(16 // out.element_size(), *places[:4]) if places[4] == 1 else 1
    launch(
        conv_weight_grad, (blocks * taps, p.G, splits), x, dy, x, out,
        p.N, p.H, p.W, c // by, k // dy_by, p.P, p.Q, p.R, p.S, *strides(dy, dy_by),
        *strides(x, by), *(s // dw_by for s in places[:4]), places[4],
        p.stride_h, p.stride_w, p.pad_t, p.pad_l, p.dil_h, p.dil_w, each,
        DY_UNIT=dy_by, UNIT=by, DW_UNIT=dw_by, PRECISION=precision, BM=tile.BM, BN=tile.BN, BP=bp,
        BQ=bq, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        by_k, by_c, by_r, by_s = dw.stride()
        rows = (p.K, p.R, p.S) if taps > 1 else (1, p.K, 1)  # a plane of rows where taps are none
        to = (by_k, by_r, by_s, by_c) if taps > 1 else (0, by_k, by_k, by_c)
        add_parts(out, dw, None, None, rows, to, NOTHING, 0)


def _depthwise_weight_grad(p, x, dy, dw) -> None:
    c = p.C // p.G
    by, dy_by = unit(x, p.C), unit(dy, p.K)
    bm, bc = block(dy, x)
    columns, steps = cdiv(p.K, bc), cdiv(p.N * p.P * p.Q, bm)
    splits = tiles.choose_splits(columns * c * p.R * p.S, steps, device_of(x), 4)
    parts = new_parts(x, splits, c * p.R * p.S, p.K)
    launch(
        conv_depthwise_weight_grad, (columns * c * p.R * p.S, 1, splits), x, dy, x, parts,
        p.N, p.H, p.W, p.K // dy_by, p.P, p.Q, p.R, p.S, *strides(dy, dy_by), *strides(x, by),
        p.stride_h, p.stride_w, p.pad_t, p.pad_l, p.dil_h, p.dil_w, cdiv(steps, splits),
        DY_UNIT=dy_by, UNIT=by, IN=c, OUT=p.K // p.G,
        WIDE=is_wide(p.N, (p.H + p.pad_t + p.pad_b, p.W + p.pad_l + p.pad_r), (p.P, p.Q)),
        BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip
    by_k, by_i, by_r, by_s = dw.stride()
    add_parts(parts, dw, None, None, (c, p.R, p.S), (by_i, by_r, by_s, by_k), NOTHING, 0)
