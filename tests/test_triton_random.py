"""Random convolutions through Triton's interpreter."""

import random

import pytest
import torch
from conftest import interpreted_triton
from mixed_problems import check, drawn

pytest.importorskip("triton")


@pytest.mark.parametrize("seed", range(6))
def test_random_problems(seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(5):
        check(drawn(rng), generator, interpreted_triton())
