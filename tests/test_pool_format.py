"""Memory formats of pooling's gradients, on every backend and for a network's flatten."""

import pytest
import torch
from test_pool import SIZE, same_layout, tensor

import fastconv


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("grad_layout", ["nchw", "nhwc"])
def test_gradients_have_the_inputs_format(layout, grad_layout):
    """Whatever the outputs' gradient has: behind a flatten it is contiguous, of one pixel too."""
    x = tensor(layout, torch.float32).requires_grad_()
    for function in (
        lambda x: fastconv.max_pool2d(x, 3, 2),
        lambda x: fastconv.max_pool2d(x, 3, 2, return_indices=True)[0],
        lambda x: fastconv.max_pool2d(x, SIZE[2:]),
        lambda x: fastconv.avg_pool2d(x, 3, 2),
        lambda x: fastconv.adaptive_avg_pool2d(x, (4, 5)),
        lambda x: fastconv.global_avg_pool2d(x),
    ):
        y = function(x)
        dy = tensor(grad_layout, torch.float32, y.shape, seed=1)
        (ours,) = torch.autograd.grad(y, x, dy)
        same_layout(ours, x)
        (flat,) = torch.autograd.grad(function(x).flatten(1), x, dy.flatten(1))
        same_layout(flat, x)
        assert torch.equal(flat, ours)
