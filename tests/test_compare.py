"""The rule that decides whether a result is good."""

from __future__ import annotations

import math

import pytest
import torch

from fastconv.testing.compare import (
    allowed_error,
    assert_good,
    is_good,
    poison,
    relative_rms,
)

INF, NAN = math.inf, math.nan
EPS = torch.finfo(torch.float32).eps


def vector(*values: float, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def off_by(relative: float, truth: torch.Tensor) -> torch.Tensor:
    """A float32 result whose relative rms error is about ``relative``."""
    return (truth * (1 + relative)).float()


TRUTH = torch.linspace(1, 2, 15, dtype=torch.float64).view(3, 5)


def test_relative_rms_is_the_ratio_of_norms():
    assert relative_rms(vector(3, 5), vector(3, 4)) == pytest.approx(1 / 5)
    assert relative_rms(vector(6, 8), vector(3, 4)) == pytest.approx(1)
    assert relative_rms(vector(3, 4), vector(3, 4)) == 0


def test_relative_rms_of_nothing_is_zero():
    assert relative_rms(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.float64)) == 0
    assert relative_rms(vector(NAN), vector(INF)) == 0  # nothing finite to compare


def test_relative_rms_to_a_zero_truth_is_the_absolute_error():
    assert relative_rms(vector(0, 0), vector(0, 0)) == 0
    assert relative_rms(vector(0.5, -0.5), vector(0, 0)) == pytest.approx(0.5)


def test_relative_rms_skips_what_is_not_finite_in_the_truth_only():
    assert relative_rms(vector(3, 5, NAN), vector(3, 4, NAN)) == pytest.approx(1 / 5)
    assert relative_rms(vector(3, NAN), vector(3, 4)) == INF
    assert relative_rms(vector(3, INF), vector(3, 4)) == INF


def test_relative_rms_is_computed_in_float64():
    truth = vector(1.0) + EPS / 4
    assert relative_rms(vector(1.0, dtype=torch.float32), truth) == pytest.approx(EPS / 4)


def test_allowed_error_is_a_multiple_of_torchs_above_a_floor():
    far, near = off_by(1e-3, TRUTH), off_by(0, TRUTH)
    assert allowed_error(far, TRUTH, torch.float32) == pytest.approx(2e-3, rel=1e-3)
    assert allowed_error(far, TRUTH, torch.float32, factor=8) == pytest.approx(8e-3, rel=1e-3)
    assert allowed_error(near, TRUTH, torch.float32) == 4 * EPS
    assert allowed_error(near, TRUTH, torch.bfloat16) == 4 * torch.finfo(torch.bfloat16).eps


def test_allowed_error_is_the_floor_where_torch_overflowed():
    overflowed = vector(1, INF, dtype=torch.float32)
    assert allowed_error(overflowed, vector(1, 2), torch.float32) == 4 * EPS


def test_is_good_up_to_twice_torchs_error():
    torch_result = off_by(1e-3, TRUTH)
    assert is_good(off_by(-1.9e-3, TRUTH), torch_result, TRUTH, torch.float32)
    assert not is_good(off_by(2.1e-3, TRUTH), torch_result, TRUTH, torch.float32)
    assert is_good(off_by(7.9e-3, TRUTH), torch_result, TRUTH, torch.float32, factor=8)
    assert not is_good(off_by(8.1e-3, TRUTH), torch_result, TRUTH, torch.float32, factor=8)


def test_is_good_up_to_the_floor_where_torch_is_exact():
    truth = torch.ones(3, 5, dtype=torch.float64)
    assert is_good(off_by(4 * EPS, truth), truth, truth, torch.float32)
    assert not is_good(off_by(5 * EPS, truth), truth, truth, torch.float32)


@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("other", [NAN, INF, -INF, 1.0])
def test_what_is_not_finite_must_match_in_place_and_kind(special, other):
    truth, actual = TRUTH.clone(), TRUTH.float()
    truth[1, 2], actual[1, 2] = special, other
    same = other == special or (math.isnan(other) and math.isnan(special))
    assert is_good(actual, truth, truth, torch.float32) == same
    assert is_good(truth.float(), truth, truth, torch.float32)
    assert not is_good(truth.float(), truth, TRUTH, torch.float32)  # special where the truth is not


def test_finite_errors_beside_infinities_still_count():
    truth = vector(1, 2, INF)
    assert not is_good(vector(1, 2.1, INF, dtype=torch.float32), truth, truth, torch.float32)


def test_a_truth_beyond_the_dtype_is_infinite_in_it():
    truth = vector(1, 1e6, -1e6)
    good = vector(1, INF, -INF, dtype=torch.float16)
    assert is_good(good, good, truth, torch.float16)
    assert not is_good(good.clamp(-6e4, 6e4), good, truth, torch.float16)


def test_zero_sizes_and_zero_truths():
    empty = torch.empty(0, 3, dtype=torch.float64)
    assert is_good(empty.float(), empty, empty, torch.float32)
    zero = torch.zeros(3, dtype=torch.float64)
    assert is_good(zero.float(), zero, zero, torch.float32)
    assert not is_good(zero.float() + 1, zero, zero, torch.float32)


def test_shape_and_dtype_must_match():
    assert not is_good(TRUTH.float()[:2], TRUTH, TRUTH, torch.float32)
    assert not is_good(TRUTH.float().T, TRUTH, TRUTH, torch.float32)
    assert not is_good(TRUTH, TRUTH, TRUTH, torch.float32)
    with pytest.raises(ValueError, match=r"torch_result has shape \(2, 5\), truth \(3, 5\)"):
        is_good(TRUTH.float(), TRUTH[:2], TRUTH, torch.float32)


def test_assert_good_says_how_far_and_where():
    assert_good(TRUTH.float(), TRUTH, TRUTH, torch.float32)
    actual = TRUTH.float()
    actual[2, 1] = 7
    with pytest.raises(AssertionError) as failure:
        assert_good(actual, TRUTH, TRUTH, torch.float32, name="dx")
    message = str(failure.value)
    error = relative_rms(actual, TRUTH)
    for part in ("dx", f"{error:.3g}", f"{4 * EPS:.3g}", "(2, 1)", "7", f"{TRUTH[2, 1]:.9g}"):
        assert part in message
    actual[0, 3] = NAN
    with pytest.raises(AssertionError, match=r"1 of 15 .* \(0, 3\): nan, expected 1.21428571"):
        assert_good(actual, TRUTH, TRUTH, torch.float32)
    with pytest.raises(AssertionError, match=r"shape \(2, 5\), expected \(3, 5\)"):
        assert_good(TRUTH[:2], TRUTH, TRUTH, torch.float64)
    with pytest.raises(AssertionError, match="dtype torch.float64, expected torch.float32"):
        assert_good(TRUTH, TRUTH, TRUTH, torch.float32)


def test_poison_fills_in_place():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        tensor = torch.zeros(2, 3, dtype=dtype)
        assert poison(tensor) is not None and tensor.isnan().all()
    tensor = torch.zeros(2, 3, dtype=torch.uint8)
    assert (poison(tensor) == 255).all() and (tensor == 255).all()
    leaf = torch.zeros(2, 3, requires_grad=True)
    poison(leaf)
    assert leaf.isnan().all()
