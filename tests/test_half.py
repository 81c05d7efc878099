"""16-bit storage: every bit pattern is read and written as torch reads and rounds it."""

import pytest
import torch

import fastconv

DTYPES = [torch.bfloat16, torch.float16]
LAYOUTS = {
    "dense": lambda t: t,  # vectors
    "strided": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],  # one at a time
}


def same_bits(actual, expected):
    assert torch.equal(actual.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(actual.view(torch.int16)[number], expected.view(torch.int16)[number])


def patterns(dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 8, 64, 128)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pattern_survives(dtype, layout, isa):
    x = patterns(dtype)
    nothing = torch.full_like(x, -0.0)  # +0 would make a +0 of -0
    same_bits(fastconv.residual_add(LAYOUTS[layout](x), nothing), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_rounded_as_torch_rounds(dtype, layout, isa):
    """Every pattern with others of at most as many bits below it as are cut off, so that ties,
    carries into the exponent, overflows and subnormal results all occur."""
    x, info = patterns(dtype), torch.finfo(dtype)
    g = torch.Generator().manual_seed(0)
    partners = [torch.full_like(x, v) for v in (info.max, info.tiny, info.tiny * info.eps)]
    for bits in (2, 8, 14):
        scale = 2.0 ** -torch.randint(1, bits, x.shape, generator=g)
        partners.append((x.double() * scale * (1 - info.eps / 2)).to(dtype))
        partners.append((-x.double() * scale).to(dtype))
    step = x.double().abs() * info.eps / 4  # a half of the last bit where that is 1
    partners += [step.to(dtype), (-2 * step).to(dtype)]
    for y in partners:
        expected = (x.float() + y.float()).to(dtype)
        same_bits(fastconv.residual_add(LAYOUTS[layout](x), y), expected)
