"""Every CUDA kernel executed from the PTX that nvcc makes of it, by the kernels' own tests.

The emulator runs what g++ makes of the sources, whose inline instructions are functions there
(tests/emulator/emulator_ptx.h). Here it runs those instructions as they are written in csrc, after
the compiler that a GPU's users have: operands in the wrong order, what nvcc moves across a barrier
and arithmetic that the two compilers take differently would show.
"""

import re

import pytest
from emulator import ptx
from nvcc import every_ptx, find_nvcc

# ruff: noqa: F401  the tests imported are collected here
from test_cuda_gemm_grad import test_every_tile as test_every_tile_of_gradients
from test_cuda_gemm_grad import test_every_tile_1x1 as test_every_tile_1x1_of_gradients
from test_cuda_gemm_grad import test_gradients, test_no_bank_conflicts
from test_cuda_grad import (
    test_activation_bias_grad,
    test_bias_grad,
    test_depthwise,
    test_direct,
)
from test_cuda_kernels import (
    TAILS_1X1,
    check,
    test_conv_implicit_gemm,
    test_every_tile,
    test_every_tile_1x1,
)
from test_cuda_pointwise import test_activation_grad, test_residual_add, test_transpose
from test_cuda_pool import (
    test_adaptive_avg_pool,
    test_adaptive_avg_pool_gradient,
    test_avg_pool,
    test_avg_pool_gradient,
    test_max_pool,
    test_max_pool_gradient_by_two,
    test_max_pool_gradients,
)
from test_cuda_simt import test_conv_depthwise, test_conv_direct
from test_cuda_stem import (
    test_conv_stem,
    test_conv_stem_bank_conflicts,
    test_conv_stem_weight_grad,
)

pytestmark = [
    pytest.mark.skipif(find_nvcc() is None, reason="no nvcc"),
    pytest.mark.xdist_group("ptx"),  # decoded once
]


@pytest.fixture(scope="module", params=["90a", pytest.param("80", marks=pytest.mark.slow)])
def texts(request):
    made = every_ptx(request.param)
    try:
        for text in made:
            ptx.parse(text)
    except NotImplementedError as error:
        pytest.skip(f"PTX of this nvcc: {error}")
    return made


@pytest.fixture(autouse=True)
def _from_ptx(texts):
    with ptx.compiled_kernels(texts):
        yield


FAULTS = {
    "copies that nobody waits for": (r"cp\.async\.wait_group\s+\d+;", ""),
    "no barriers": (r"bar\.sync\s+0;", ""),
    "two words of a exchanged": (
        r"(mma\.sync\S+\s+\{[^}]+\}, \{%r\d+, )(%r\d+), (%r\d+)",
        r"\1\3, \2",
    ),
    "matrices transposed": (r"m8n8\.x4\.shared", "m8n8.x4.trans.shared"),
    "a copy from the next 16 bytes": (
        r"(cp\.async\.cg\.shared\.global \[%r\d+\], \[%rd\d+)\]",
        r"\1+16]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_text_shows(fault, texts):
    (text,) = (t for t in texts if "MathE0ELi0ELb1ELNS_9DirectionE0" in t)  # of conv1x1_f16.cu
    faulty, count = re.subn(*FAULTS[fault], text)
    assert count > 0
    with ptx.compiled_kernels([faulty]), pytest.raises((AssertionError, RuntimeError)):
        check("conv1x1", "f16", 0, TAILS_1X1)
