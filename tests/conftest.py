"""Every test starts from the same random state, and every output and scratch buffer as NaN.

A run of the whole suite fails if a planner row or register tile never ran in it.
"""

import collections
import contextlib
import os
import sys

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
# Read when torch is. Else a thread that waits for its team spins for milliseconds first, on a core
# that another worker's threads need: every worker of -n auto has a team as large as the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

import fastconv
from fastconv import _C
from fastconv.testing import compare

_C.set_poison(True)
EXECUTED = pytest.StashKey[dict[str, bool]]()


@pytest.fixture(params=["cpu", "cuda", "triton"])
def backend(request):
    """Every backend: the CPU's, CUDA's in the emulator, and Triton's in its interpreter."""
    if request.param == "cpu":
        yield
    elif request.param == "cuda":
        from emulator.ops import emulated_cuda

        with emulated_cuda():
            yield
    else:
        with interpreted_triton():
            yield


@contextlib.contextmanager
def interpreted_triton():
    """Within it fastconv's ops on CPU tensors run in Triton's interpreter, outputs poisoned."""
    pytest.importorskip("triton")
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("TRITON_INTERPRET is not 1")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN
    try:
        with fastconv.backend("triton"):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def without_tf32():
    """torch's TF32 switch off, whatever a test does with it."""
    with compare.tf32(False):
        yield


@pytest.fixture(params=_C.cpu_isas().split())
def isa(request):
    """Every instruction set this processor runs, AVX-512's logic compiled for AVX2 among them."""
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa("")


def pytest_runtest_teardown(item):
    """A worker of pytest-xdist whose GPU takes no more work ends, and another goes on; else all its
    later tests would fail too."""
    if hasattr(item.config, "workerinput") and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


def pytest_configure(config):
    config.stash[EXECUTED] = {}


def _merge(config, executed):
    found = config.stash[EXECUTED]
    for name, ran in executed:
        found[name] = found.get(name, False) or ran


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    _merge(node.config, getattr(node, "workeroutput", {}).get("executed", ()))


def _never_ran(config) -> list[str]:
    """What a run of the whole suite left out; nothing of a run of a part."""
    whole = config.args == config.getini("testpaths") and not config.option.keyword
    return [name for name, ran in config.stash[EXECUTED].items() if whole and not ran]


def _executed():
    emulated = sys.modules.get("emulator.ops")  # of a process that ran it
    compiled = sys.modules.get("emulator.ptx")
    interpreted = sys.modules.get("fastconv.triton.problem")
    return [
        *_C.executed(),
        *(emulated.executed() if emulated else ()),
        *(compiled.executed() if compiled else ()),
        *(interpreted.executed() if interpreted else ()),
    ]


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["executed"] = _executed()
        return
    _merge(session.config, _executed())
    if _never_ran(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    found, missing = config.stash[EXECUTED], _never_ran(config)
    terminalreporter.write_line(f"{sum(found.values())} of {len(found)} kernel rows and tiles ran")
    for name in missing:
        terminalreporter.write_line(f"never ran: {name}", red=True)
    # A skip's report holds (file, line, reason).
    reasons = collections.Counter(r.longrepr[2] for r in terminalreporter.stats.get("skipped", ()))
    terminalreporter.write_line(f"{sum(reasons.values())} tests skipped")
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count}: {reason}")
