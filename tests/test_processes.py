"""Forked children and threads: where torch's own convolution works, so does ours."""

import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastconv

FORK = """
    import glob, json, os, signal, sys, time, torch, fastconv
    import torch.nn.functional as F

    threads, in_child = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    x, w = torch.randn(4, 32, 60, 56), torch.randn(48, 32, 3, 3, requires_grad=True)

    def step(convolve):
        y = convolve(x, w, padding=1)
        return y.detach(), torch.autograd.grad(y.square().sum(), w)[0]

    def asleep(child):
        try:
            states = {open(path).read().rpartition(")")[2].split()[0]
                      for path in glob.glob(f"/proc/{child}/task/*/stat")}
        except OSError:  # a thread has just ended
            return False
        return states == {"S"}

    engines = {"torch": F.conv2d, "fastconv": fastconv.conv2d}
    expected = {name: step(convolve) for name, convolve in engines.items()}
    children = {}
    for name, convolve in engines.items():
        children[name] = os.fork()
        if children[name] == 0:
            if in_child:
                torch.set_num_threads(in_child)
            found = zip(step(convolve), expected[name])
            os._exit(0 if all((a - b).norm() < 1e-4 * b.norm() for a, b in found) else 3)
    for name, convolve in engines.items():
        assert all(torch.equal(a, b) for a, b in zip(step(convolve), expected[name])), name
    status, end, slept = {}, time.monotonic() + 20, dict.fromkeys(children, 0)
    while len(status) < len(children):
        for name, child in children.items():
            if name in status:
                continue
            if (found := os.waitpid(child, os.WNOHANG))[0]:
                status[name] = os.waitstatus_to_exitcode(found[1])
                continue
            slept[name] = slept[name] + 1 if asleep(child) else 0
            # One that works has a thread that runs or could; 200 looks are 2 seconds and more.
            if slept[name] > 200 or time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    print(json.dumps(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(
    "threads, in_child", [(1, 0), (1, 2), (2, 1), (2, 0)], ids=["1", "1 to 2", "2 to 1", "2"]
)
def test_a_forked_child_works_wherever_torchs_convolution_does(threads, in_child):
    """After the parent ran one; with as many threads in the child (0) or another number.

    Where the parent's OpenMP has started threads, GNU's hangs in a child that wants them too.
    """
    command = [sys.executable, "-c", textwrap.dedent(FORK), str(threads), str(in_child)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["fastconv"] == 0 or status["torch"] != 0, status
    if threads == 1 or in_child == 1:
        assert status == {"torch": 0, "fastconv": 0}


def test_eight_threads_train_one_module():
    """Forward and both gradients, while others do the same; the same bits as alone."""
    net = torch.nn.Sequential(
        fastconv.nn.Conv2d(3, 24, 5, 2, activation="relu"),
        fastconv.nn.MaxPool2d(3, 2, 1),
        fastconv.nn.Conv2d(24, 24, 3, padding=1, groups=2),
        fastconv.nn.AvgPool2d(2),
        fastconv.nn.Conv2d(24, 16, 1),
    )
    inputs = [torch.randn(1 + i % 3, 3, 33 + i % 5, 41) for i in range(48)]

    def step(x):
        y = net(x.clone().requires_grad_())
        return y.detach(), *torch.autograd.grad(y.square().sum(), tuple(net.parameters()))

    expected = [step(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for mine, alone in zip(pool.map(step, inputs), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, alone, strict=True))
