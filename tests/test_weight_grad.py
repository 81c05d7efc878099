"""Weight gradients of many inputs and few outputs, which exchange the input and dy (stride 1)."""

from __future__ import annotations

import pytest
from conv_cases import DTYPES, LAYOUTS
from test_conv import check_threads, compare_all

CASES = {
    "one": (2, 34, 9, 11, 1, 3, 5, (1, 1), (1, 2), (1, 1), 1),
    "in groups": (1, 40, 8, 13, 4, 3, 2, (1, 1), (0, 1), (1, 1), 2),
    "dilated": (1, 17, 14, 15, 2, 3, 2, (1, 1), (0, 3), (2, 3), 1),
    "three of 7x7": (1, 50, 10, 12, 3, 7, 7, (1, 1), (3, 3), (1, 1), 1),
    "past the image": (1, 36, 4, 5, 2, 3, 3, (1, 1), (5, 4), (2, 2), 1),
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_few_outputs(case, dtype, layout):
    compare_all(CASES[case], dtype, layout)


def test_results_do_not_depend_on_threads():
    check_threads(CASES["three of 7x7"])
