"""Large results stay mapped when they are freed, and the next ones take their memory."""

from __future__ import annotations

import os
import threading

import pytest
import torch
import torch.nn.functional as F

import fastconv
from fastconv import memory

LARGE = (2, 3, 1031, 1033)  # of 5 outputs 42.6 MB


@pytest.fixture(autouse=True)
def nothing_kept():
    memory.empty_cache()
    yield
    memory.set_limit(8 << 30)
    memory.empty_cache()


def large(seed=0, channels_last=False):
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(LARGE, generator=g), torch.randn(5, 3, 1, 1, generator=g)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x, w


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_result_takes_the_memory_of_a_freed_one(channels_last):
    x, w = large(channels_last=channels_last)
    y = fastconv.conv2d(x, w)
    before, size = y.data_ptr(), y.numel() * 4
    assert memory.reserved() == 0
    del y
    assert size <= memory.reserved() <= size + (4 << 20)
    y = fastconv.conv2d(x, 2 * w)
    assert (y.data_ptr(), memory.reserved()) == (before, 0)
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
    torch.testing.assert_close(y, F.conv2d(x, 2 * w))


def test_two_results_do_not_share_memory():
    x, w = large()
    del x
    results = []
    for seed in range(3):
        results.append(fastconv.conv2d(large(seed)[0], w))
    for seed, y in enumerate(results):
        torch.testing.assert_close(y, F.conv2d(large(seed)[0], w))


def test_a_view_keeps_the_memory():
    x, w = large()
    part = fastconv.conv2d(x, w)[1, 3]
    assert memory.reserved() == 0
    other = fastconv.conv2d(x, -w)
    torch.testing.assert_close(part, F.conv2d(x, w)[1, 3])
    assert not torch.equal(other[1, 3], part)


def test_small_results_are_torchs():
    y = fastconv.conv2d(torch.randn(1, 3, 512, 512), torch.randn(8, 3, 1, 1))
    y.resize_(y.numel() * 2)
    del y
    assert memory.reserved() == 0


def test_a_large_one_cannot_be_resized():
    x, w = large()
    with pytest.raises(RuntimeError, match="resiz"):
        fastconv.conv2d(x, w).resize_(1 << 30)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_the_limit(limit):
    x, w = large()
    memory.set_limit(limit)
    y = fastconv.conv2d(x, w)
    torch.testing.assert_close(y, F.conv2d(x, w))
    del y
    assert memory.reserved() == 0
    with pytest.raises(ValueError, match="-1"):
        memory.set_limit(-1)


def test_the_oldest_goes_first():
    x, w = large()
    one, other = fastconv.conv2d(x, w), fastconv.conv2d(x, w)
    memory.set_limit(60 << 20)
    first, last = one.data_ptr(), other.data_ptr()
    del one
    del other
    assert memory.reserved() < 60 << 20
    assert fastconv.conv2d(x, w).data_ptr() == last != first


def test_a_lower_limit_and_empty_cache_give_it_back():
    x, w = large()
    for give_back in (memory.empty_cache, lambda: memory.set_limit(1)):
        fastconv.conv2d(x, w)
        assert memory.reserved() > 0
        give_back()
        assert memory.reserved() == 0


def test_an_input_gradient():
    x = torch.randn(2, 30, 600, 700, requires_grad=True)
    w = torch.randn(3, 30, 1, 1)
    dy = torch.randn(2, 3, 600, 700)
    for _ in range(2):  # the second time in the memory of the first
        (dx,) = torch.autograd.grad(fastconv.conv2d(x, w), x, dy)
        (true,) = torch.autograd.grad(F.conv2d(x, w), x, dy)
        torch.testing.assert_close(dx, true)
        del dx


def test_inference_mode_and_shared_memory():
    x, w = large()
    with torch.inference_mode():
        assert fastconv.conv2d(x, w).is_inference()
    y = fastconv.conv2d(x, w)
    expected = y.clone()
    assert torch.equal(y.share_memory_(), expected)


def test_threads_take_and_free():
    x, w = large()
    expected, wrong = F.conv2d(x, w), []

    def work(sign):
        for _ in range(4):
            y = fastconv.conv2d(x, sign * w)
            if not torch.allclose(y, sign * expected, atol=1e-4):
                wrong.append(sign)

    threads = [threading.Thread(target=work, args=(sign,)) for sign in (1, -1, 2, -2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_takes_a_kept_block():
    x, w = large()
    expected = F.conv2d(x, w)
    fastconv.conv2d(x, w)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        same = torch.allclose(fastconv.conv2d(x, w), expected, atol=1e-4)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
