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


def test_what_has_not_changed_is_not_compiled_again(setup_py, monkeypatch, tmp_path):
    compiled = setup_py("x86_64")["compiled"]
    monkeypatch.setitem(compiled.__globals__, "ROOT", tmp_path)
    source, header = tmp_path / "a.cpp", tmp_path / "a header.h"
    runs = []

    def compile_to(folder, depfile):
        runs.append(folder)
        escaped = str(header).replace(" ", "\\ ")  # as gcc writes it
        Path(depfile).write_text(f"x.o: {source} \\\n {escaped}\n")
        Path(folder, "x.o").write_text("object")
        return str(Path(folder, "x.o"))

    def build(*, flags="-O3", version="1"):
        made = Path(compiled("a.cpp", ["g++", flags], version, compile_to))
        assert made.read_text() == "object"
        return len(runs)

    def touch(path, seconds):
        path.touch()
        now = path.stat().st_mtime
        os.utime(path, (now + seconds, now + seconds))

    touch(source, -10), touch(header, -10)
    assert build() == 1 and build() == 1
    assert build(flags="-O2") == 2 and build(version="2") == 3
    assert build() == 3 and build(flags="-O2") == 3
    touch(header, 10)
    assert build() == 4
    touch(header, -10)
    assert build() == 4
    touch(source, 10)
    assert build() == 5
    touch(source, -10)
    header.unlink()
    assert build() == 6

    def edited_meanwhile(folder, depfile):
        made = compile_to(folder, depfile)
        source.touch()
        return made

    header.touch(), touch(header, -10)
    compiled("c.cpp", ["g++"], "1", edited_meanwhile)
    compiled("c.cpp", ["g++"], "1", compile_to)
    assert len(runs) == 8

    def cut_off(folder, depfile):
        Path(folder, "x.o").write_text("obj")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled("b.cpp", ["g++"], "1", cut_off)
    assert not list(tmp_path.glob("build/objects/b.cpp*"))


def test_every_source_is_compiled_with_its_flags(setup_py):
    names = setup_py("x86_64")
    compiled = {p for p in CSRC if p.endswith((".cpp", ".cu"))}
    assert set(names["sources"](cuda=True)) == compiled
    assert set(names["sources"]()) == {p for p in compiled if "/cuda/" not in p}
    # An ISA's file without flags would compile for the baseline and say nothing.
    assert set(names["ISA_FLAGS"]) == ISA_FILES - {"isa_baseline.cpp"}


def test_other_processors_leave_the_x86_files_out(setup_py):
    names = setup_py("aarch64")
    compiled = {p for p in CSRC if p.endswith((".cpp", ".cu"))}
    left_out = compiled - set(names["sources"](cuda=True))
    assert not names["X86"]
    assert {Path(p).name for p in left_out} == ISA_FILES - {"isa_baseline.cpp"}


@pytest.fixture
def toolkit(tmp_path):
    """A folder that looks like a CUDA toolkit."""
    for part in ("bin/nvcc", "include/cuda_runtime_api.h"):
        (tmp_path / "cuda" / part).parent.mkdir(parents=True)
        (tmp_path / "cuda" / part).touch(mode=0o755)
    return tmp_path / "cuda"


def test_a_test_build_may_have_fewer_instruction_sets(setup_py, monkeypatch):
    sources = setup_py("x86_64")["sources"]
    monkeypatch.setenv("FASTCONV_BUILD_ISAS", "avx2")
    isas = [Path(name).name for name in sources() if "/isa_" in name]
    assert sorted(isas) == ["isa_avx2.cpp", "isa_baseline.cpp"]
    monkeypatch.setenv("FASTCONV_BUILD_ISAS", "avx2 sse9")
    with pytest.raises(SystemExit, match="names sse9; there are baseline, avx2"):
        sources()


def test_the_toolkit_is_found_behind_a_wrapper_of_nvcc(setup_py, monkeypatch, toolkit, tmp_path):
    wrapper = tmp_path / "path" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={toolkit}' >&2\n")
    wrapper.chmod(0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    names = setup_py("x86_64")
    monkeypatch.setattr(
        names["Path"], "exists", lambda p, e=Path.exists: "usr" not in p.parts and e(p)
    )
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    assert names["find_cuda"]() == toolkit.resolve()


def test_cuda_home_comes_first_and_can_be_refused(setup_py, monkeypatch, toolkit):
    names = setup_py("x86_64")
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert names["wanted_cuda"]() == toolkit.resolve()
    monkeypatch.setenv("FASTCONV_CUDA", "0")
    assert names["wanted_cuda"]() is None
    monkeypatch.setenv("FASTCONV_CUDA", "yes")
    with pytest.raises(SystemExit, match="0 or 1"):
        names["wanted_cuda"]()


def test_cuda_that_is_insisted_on_and_missing_is_an_error(setup_py, monkeypatch):
    names = setup_py("x86_64")
    monkeypatch.setitem(names["wanted_cuda"].__globals__, "find_cuda", lambda: None)
    monkeypatch.setenv("FASTCONV_CUDA", "1")
    with pytest.raises(SystemExit, match="CUDA_HOME"):
        names["wanted_cuda"]()


def test_architectures(setup_py, monkeypatch):
    architectures = setup_py("x86_64")["architectures"]
    monkeypatch.setenv("FASTCONV_CUDA_ARCHS", "86;90a")
    options = " ".join(architectures())
    assert "code=sm_86" in options and "compute_90a,code=sm_90a" in options
    assert "arch=compute_86,code=compute_86" in options
    monkeypatch.setenv("FASTCONV_CUDA_ARCHS", "sm_80")
    with pytest.raises(SystemExit, match="80;90a"):
        architectures()


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
