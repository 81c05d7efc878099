"""Random convolutions through the CUDA backend in the emulator: several GPUs and thread orders."""

import random

import pytest
import torch
from emulator.ops import emulated_cuda
from mixed_problems import check, drawn


@pytest.mark.parametrize("seed", range(12))
def test_random_problems(seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(25):
        problem = drawn(rng)
        least = int(problem["filled"])
        on = emulated_cuda(gpu=problem["gpu"], seed=problem["seed"], least_filled=least)
        check(problem, generator, on)
