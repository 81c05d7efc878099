"""Every test starts from the same random state, and every output and scratch buffer as NaN.

A run of the whole suite fails if a planner row or register tile never ran in it.
"""

import sys

import pytest
import torch

from fastconv import _C

_C.set_poison(True)
EXECUTED = pytest.StashKey[dict[str, bool]]()


@pytest.fixture(params=["cpu", "cuda"])
def backend(request):
    """Every backend that runs here: the CPU's, and CUDA's in the emulator."""
    if request.param == "cpu":
        yield
        return
    from emulator.ops import emulated_cuda

    with emulated_cuda():
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=_C.cpu_isas().split())
def isa(request):
    """Every instruction set this processor runs, AVX-512's logic compiled for AVX2 among them."""
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa("")


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
    return [*_C.executed(), *(emulated.executed() if emulated else ())]


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
