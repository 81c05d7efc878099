"""Gradients of a fused convolution for every choice of operands and of those that need one."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import fastconv

# Of x, weight, bias, residual: None where it is absent, else whether it needs its gradient.
NEEDS = [
    needs
    for needs in itertools.product((False, True), (False, True), (None, False, True), (None, True))
    if any(needs)
]


@pytest.mark.usefixtures("backend", "without_tf32")
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("needs", NEEDS, ids=str)
def test_gradients_that_are_wanted(needs, activation):
    sizes = (2, 3, 7, 6), (5, 3, 3, 2), (5,), (2, 5, 7, 5)
    operands = [
        None if need is None else torch.randn(size).requires_grad_(need)
        for size, need in zip(sizes, needs, strict=True)
    ]
    x, w, b, r = operands
    ours = fastconv.conv2d(x, w, b, padding=(1, 0), residual=r, activation=activation)
    z = F.conv2d(x, w, b, padding=(1, 0))
    z = z if r is None else z + r
    theirs = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation](z)
    wanted = [t for t in operands if t is not None and t.requires_grad]
    dy = torch.randn_like(theirs)
    pairs = (torch.autograd.grad(y, wanted, dy) for y in (ours, theirs))
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    for t in wanted:
        t.grad = None
    ours = fastconv.conv2d(x, w, b, padding=(1, 0), residual=r, activation=activation)
    ours.backward(dy)  # those that need none get none
    assert all(t is None or (t.grad is not None) == t.requires_grad for t in operands)
