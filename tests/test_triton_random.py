"""Random convolutions through Triton's interpreter."""

import random

import pytest
import torch
from conftest import interpreted_triton
from mixed_problems import check, drawn

pytest.importorskip("triton")


SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in (4, 5)]


@pytest.mark.parametrize("seed", [*range(4), *SLOW])
def test_random_problems(seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(5):
        check(drawn(rng), generator, interpreted_triton())
