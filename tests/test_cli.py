"""The command line: help, information, a validation that passes and one that must fail."""

import json

import pytest

import fastconv.nn
from fastconv.cli import main


def run(*arguments):
    """The exit status of `python -m fastconv ARGUMENTS`."""
    try:
        return main(list(arguments)) or 0
    except SystemExit as exit:
        return exit.code


@pytest.mark.parametrize("command", ["info", "validate", "train", "predict"])
def test_help(command, capsys):
    assert run(command, "--help") == 0
    assert command in capsys.readouterr().out


def test_info_names_the_instruction_set(capsys):
    assert run("info") == 0
    assert "instruction set in use" in capsys.readouterr().out


def test_validate_passes_and_writes_its_results(tmp_path):
    file = tmp_path / "results.json"
    assert run("validate", "--network", "lenet", "--no-layers", "--json", str(file)) == 0
    assert "lenet" in json.dumps(json.loads(file.read_text()))


def test_validate_fails_on_a_wrong_kernel(monkeypatch):
    right = fastconv.nn.conv2d
    monkeypatch.setattr(fastconv.nn, "conv2d", lambda *a, **k: right(*a, **k) * 1.001)
    assert run("validate", "--network", "lenet", "--no-layers") == 1


def test_unknown_network_is_refused(capsys):
    assert run("validate", "--network", "lenet9000") == 2
    assert "lenet9000" in capsys.readouterr().err
