"""docs/kernels.md holds what the sources say."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def test_excerpts_roofline_and_picture_are_up_to_date():
    page = build.PAGE.read_text()
    assert page == build.filled(page), "python docs/build.py"
    assert build.PICTURE.read_text() == build.draw(), "python docs/build.py"
    assert len(build.EXCERPT.findall(page)) >= 5


def test_an_excerpt_that_drifted_is_noticed():
    page = build.PAGE.read_text()
    found = build.EXCERPT.search(page)
    drifted = page.replace(found[0], found[0].replace("run->step", "run->stride"))
    assert drifted != page and build.filled(drifted) == page
    with pytest.raises(ValueError, match="no line with 'no such line'"):
        build.excerpt(found[1], "no such line", found[3])


def test_the_roofline_is_arithmetic():
    text = build.roofline(N=1, C=2, H=3, W=3, K=4, R=3, S=3)
    flops, read_and_written = 2 * 4 * 9 * 2 * 9, 2 * (2 * 9 + 4 * 2 * 9 + 4 * 9)
    assert f"{flops / read_and_written:.0f} FLOP per byte" in text


def test_the_files_it_names_exist():
    for name in re.findall(r"`((?:csrc|docs|tests|fastconv)/[\w/.]+)`", build.PAGE.read_text()):
        assert (ROOT / name).exists(), name


def test_the_readmes_tables_are_those_of_the_results(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    subprocess.run([sys.executable, ROOT / "bench/plot.py", "--readme", copy], check=True)
    assert copy.read_text() == (ROOT / "README.md").read_text(), "bench/plot.py --readme README.md"


def test_the_targets_table_is_that_of_the_results(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "bench/README.md").read_text())
    subprocess.run([sys.executable, ROOT / "bench/targets.py", "--readme", copy], check=True)
    text = (ROOT / "bench/README.md").read_text()
    assert copy.read_text() == text, "bench/targets.py --readme"
    table = text.split("<!-- bench:begin -->")[1].split("<!-- bench:end -->")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")][2:]
    reasons = {row[-2].strip() for row in rows} - {""}
    assert reasons, "all targets are reached?"
    for reason in reasons:
        assert f"- **{reason}**" in text, f"no paragraph on why {reason} is not faster"


def test_layers_are_drawn_as_bars_and_under_a_roof(tmp_path):
    seconds = {f"{e} {f}": 1e-4 for e in ("torch", "fastconv") for f in ("NCHW", "channels_last")}
    names = ("lenet 5x5 1->6 @28", "lenet 5x5 6->16 @14")
    document = {
        "benchmark": "layers", "batch": 1, "dtype": "float32", "threads": 1, "processor": "any",
        "torch": "", "fastconv": "", "date": "", "fma_gflops": 100.0, "copy_gbytes": 20.0,
        "rows": [{"name": n, "direction": "forward", "seconds": seconds} for n in names],
    }  # fmt: skip
    (tmp_path / "layers.json").write_text(json.dumps(document))
    command = [sys.executable, ROOT / "bench/plot.py", "--results", tmp_path]
    subprocess.run(command, check=True)
    for name in ("layers.png", "layers_roofline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
