"""What can be tested of the build without compiling: setup.py's choices and its error messages."""

import os
import platform
import re
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import setuptools

import fastconv

ROOT = Path(__file__).parents[1]
SUFFIXES = (".cpp", ".h", ".inl", ".cu", ".cuh")
CSRC = {str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*") if p.suffix in SUFFIXES}
ISA_FILES = {Path(p).name for p in CSRC if Path(p).match("csrc/cpu/isa_*.cpp")}


def run_setup(*arguments, **environment):
    """setup.py as a user runs it, seen from the repository root."""
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def setup_py(monkeypatch):
    """setup.py's names as they are on a processor; nothing is built."""

    def names(machine):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(setuptools, "setup", lambda **_: None)
        monkeypatch.chdir(ROOT)
        return runpy.run_path("setup.py")

    return names


@pytest.mark.parametrize(
    ("compiler", "missing"),
    [("", "g++"), ("no-such-compiler", "no-such-compiler"), ("no-such-cache g++", "no-such-cache")],
)
def test_a_missing_compiler_is_named_last(tmp_path, compiler, missing):
    build = ("build_ext", "--build-temp", str(tmp_path), "--build-lib", str(tmp_path))
    done = run_setup(*build, PATH=str(tmp_path), CXX=compiler)
    last = (done.stdout + done.stderr).splitlines()[-1]
    assert done.returncode == 1
    assert f"{missing!r} was not found" in last and "apt install g++" in last


def test_missing_python_headers_are_named(setup_py, monkeypatch, tmp_path):
    need_compiler = setup_py("x86_64")["need_compiler"]
    monkeypatch.setenv("CXX", sys.executable)  # exists, and is not run
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(SystemExit, match=f"{tmp_path}/Python.h was not found.*python3-dev"):
        need_compiler()


def test_the_checked_compiler_is_the_one_used(setup_py, monkeypatch, tmp_path):
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    setup_py("x86_64")["need_compiler"]()
    assert os.environ["CXX"] == "g++"


def test_every_source_is_compiled_with_its_flags(setup_py):
    names = setup_py("x86_64")
    assert set(names["sources"]()) == {p for p in CSRC if p.endswith(".cpp")}
    # An ISA's file without flags would compile for the baseline and say nothing.
    assert set(names["ISA_FLAGS"]) == ISA_FILES - {"isa_baseline.cpp"}


def test_other_processors_leave_the_x86_files_out(setup_py):
    names = setup_py("aarch64")
    left_out = {p for p in CSRC if p.endswith(".cpp")} - set(names["sources"]())
    assert not names["X86"]
    assert {Path(p).name for p in left_out} == ISA_FILES - {"isa_baseline.cpp"}


def test_the_source_distribution_has_every_source(tmp_path):
    done = run_setup("-q", "egg_info", "--egg-base", str(tmp_path))  # SOURCES.txt: sdist's list
    assert done.returncode == 0, done.stderr
    held = set((tmp_path / "fastconv.egg-info" / "SOURCES.txt").read_text().splitlines())
    python = {str(p.relative_to(ROOT)) for p in ROOT.glob("fastconv/**/*.py")}
    assert CSRC | python | {"setup.py", "pyproject.toml", "fastconv/py.typed"} <= held
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]


def test_the_versions_agree():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'(?m)^version = "(.+)"$', text) == [fastconv.__version__]
