"""Training: schedules, determinism, checkpoints, resuming, and what a checkpoint is good for."""

import copy
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastconv.cli import data, main, train
from fastconv.cli.checkpoint import load_checkpoint
from fastconv.cli.common import CommandError, replace_file
from fastconv.cli.training import Settings, Training, learning_rate

CPU = torch.device("cpu")
LENET = Settings(
    network="lenet", seed=0, epochs=2, batch_size=16, optimizer="adamw", lr=0.01, weight_decay=0.01,
    momentum=0.9, dropout=None, validation=False, threads=1,
    shift=0.05, rotate=8.0, zoom=0.1, crop=0.0, flip=False, jitter=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def few(count):
    """The digits with so many training pictures, of all classes."""
    digits = data.digits()
    return replace(digits, train=digits.train[:: len(digits.train) // count][:count])


def finished(settings, pictures):
    training = Training(settings, pictures, CPU)
    for _ in training.run():
        pass
    return training


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def steps_of(path):
    return load_checkpoint(path).training["step"]


# --- the loop -----------------------------------------------------------------------------------


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(step, 200, 0.5) for step in range(200)]
    top = rates.index(0.5)
    assert rates[0] == 0.5 / 20 and max(rates) == 0.5 and rates[-1] < 1e-4
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert learning_rate(0, 1, 0.5) == 0.5


def test_the_same_seed_gives_the_same_bits():
    pictures = few(100)  # the last batch is smaller
    first, second = finished(LENET, pictures), finished(LENET, pictures)
    assert first.step == first.steps == 14
    assert_same_bits(first.model.state_dict(), second.model.state_dict())
    assert first.history == second.history and len(first.history) == 2
    other = finished(replace(LENET, seed=1), pictures)
    assert not torch.equal(first.model[0].weight, other.model[0].weight)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_training_picture_is_seen_once_an_epoch(optimizer):
    training = Training(replace(LENET, optimizer=optimizer), few(50), CPU)
    epochs = 0
    for ended in training.run():
        epochs += ended
        assert training.seen == (50 if ended else training.seen) and training.seen <= 50
    assert epochs == 2


def test_weight_decay_and_momentum_reach_the_optimizer():
    group = Training(replace(LENET, weight_decay=0.3, momentum=0.8), few(10), CPU).optimizer
    assert group.param_groups[0]["weight_decay"] == 0.3
    assert group.param_groups[0]["betas"][0] == 0.8


def test_a_loss_that_is_not_finite_ends_the_run():
    settings = replace(LENET, optimizer="sgd", lr=1e38, network="classic_cnn")
    with pytest.raises(CommandError, match="lower --lr") as caught:
        finished(settings, few(64))
    assert caught.value.status == 1


def test_a_network_with_dropout_goes_on_to_the_bit():
    """Stops in the middle of an epoch; NiN's dropout draws from torch's own generator."""
    settings = replace(LENET, network="nin", epochs=1, batch_size=1, dropout=0.5)
    pictures = few(4)
    whole = finished(settings, pictures)

    stopped = Training(settings, pictures, CPU)
    steps = stopped.run()
    next(steps), next(steps)
    weights = {k: v.clone() for k, v in stopped.model.state_dict().items()}
    state = stopped.state()
    torch.rand(7)  # other users of the global generator do no harm
    resumed = Training(settings, pictures, CPU)
    resumed.load_state(weights, state)
    assert [ended for ended in resumed.run()] == [False, True]
    assert_same_bits(whole.model.state_dict(), resumed.model.state_dict())
    assert whole.history == resumed.history


# --- mixed precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("amp", train.AMP)
def test_amp_casts_the_network_and_leaves_the_parameters(amp):
    """Activations take the dtype; gradients are float32, unscaled, and near a float32 step's."""
    training = Training(replace(LENET, amp=amp), few(16), CPU)
    seen = []
    training.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    start = {k: v.clone() for k, v in training.model.state_dict().items()}
    next(training.run())
    assert [t.dtype for t in seen] == [getattr(torch, amp)]
    whole = Training(LENET, few(16), CPU)
    whole.model.load_state_dict(start)
    next(whole.run())
    assert training.scaler.is_enabled() == (amp == "float16")  # bfloat16 needs none
    for mine, exact in zip(training.model.parameters(), whole.model.parameters(), strict=True):
        assert mine.dtype == mine.grad.dtype == torch.float32
        distance = (mine.grad - exact.grad).norm() / exact.grad.norm()
        assert distance < 8 * torch.finfo(getattr(torch, amp)).eps
    assert training.loss == pytest.approx(whole.loss, rel=0.01) and training.loss != whole.loss


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_halved():
    training = Training(replace(LENET, amp="float16"), few(50), CPU)
    training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": 2.0**60})
    start = {k: v.clone() for k, v in training.model.state_dict().items()}
    steps = training.run()
    next(steps)
    assert_same_bits(training.model.state_dict(), start)
    assert training.scaler.get_scale() == 2.0**59 and training.step == 1
    training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": 2.0**10})
    next(steps)
    assert not torch.equal(training.model[0].weight, start["0.weight"])


def test_the_scale_is_part_of_what_is_gone_on_from():
    settings = replace(LENET, amp="float16")
    pictures = few(50)
    stopped = Training(settings, pictures, CPU)
    stopped.scaler.load_state_dict({**stopped.scaler.state_dict(), "scale": 2.0**60})
    next(stopped.run())
    weights = {k: v.clone() for k, v in stopped.model.state_dict().items()}
    resumed = Training(settings, pictures, CPU)
    resumed.load_state(weights, stopped.state())
    assert resumed.scaler.get_scale() == 2.0**59
    for training in (stopped, resumed):
        for _ in training.run():
            pass
    assert_same_bits(stopped.model.state_dict(), resumed.model.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_state_of_another_device_leaves_the_optimizer_as_it_is_here(optimizer, monkeypatch):
    """Those of a GPU are fused, and take the scaler's results, which others refuse."""
    settings, pictures = replace(LENET, optimizer=optimizer, amp="float16"), few(40)
    elsewhere = Training(settings, pictures, CPU)
    next(elsewhere.run())
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    monkeypatch.setattr(  # as on a GPU
        Training,
        "_make_optimizer",
        lambda self: kinds[optimizer](self.model.parameters(), 0.01, fused=True),
    )
    here = Training(settings, pictures, CPU)
    here.load_state(elsewhere.model.state_dict(), copy.deepcopy(elsewhere.state()))
    next(here.run())
    assert here.step == 2 and here.optimizer.param_groups[0]["fused"]


def test_a_checkpoint_from_before_mixed_precision(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    del content["training"]["scaler"], content["training"]["settings"]["amp"]
    torch.save(content, tmp_path / "old.pt")
    assert main(["train", "--resume", str(tmp_path / "old.pt")]) == 0


# --- the command --------------------------------------------------------------------------------


def command(*arguments):
    return [sys.executable, "-m", "fastconv", *map(str, arguments)]


def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path):
    options = ("train", "lenet", "--epochs", 2, "--threads", 1)
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    assert main([*map(str, options), "--checkpoint", str(whole)]) == 0

    frequent = ("--checkpoint", killed, "--checkpoint-every", 1)
    run = subprocess.Popen(command(*options, *frequent), stderr=subprocess.DEVNULL)
    while run.poll() is None and not (killed.exists() and steps_of(killed) >= 3):
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert 3 <= steps_of(killed) < steps_of(whole)

    assert main(["train", "--resume", str(killed)]) == 0
    first, second = load_checkpoint(whole), load_checkpoint(killed)
    assert_same_bits(first.model, second.model)
    assert first.training["history"] == second.training["history"]
    assert second.training["step"] == 126


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    replace_file(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(CommandError, match="No space left"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of two epochs."""
    path = tmp_path_factory.mktemp("trained") / "lenet.pt"
    arguments = ("train", "lenet", "--epochs", "2", "--threads", "1", "--checkpoint", str(path))
    assert main(arguments) == 0
    return path


def test_checkpoint_holds_no_code(trained):
    content = torch.load(trained, weights_only=True)
    assert content["network"] == "lenet" and content["classes"] == list("0123456789")
    assert content["training"]["settings"]["epochs"] == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--resume", "FILE", "--lr", "0.5"], "--lr 0.5"),
        (["vgg11", "--resume", "FILE"], "NETWORK vgg11"),
        (["--resume", "FILE", "--amp", "float16"], "--amp float16"),
        (["lenet", "--checkpoint", "FILE"], "--overwrite"),
        ([], "NETWORK is missing"),
        (["lenet", "--dropout", "0.5"], "no dropout"),
        (["lenet", "--data", "nowhere"], "nowhere is not a folder"),
        (["lenet", "--checkpoint-every", "5"], "needs --checkpoint"),
        (["lenet", "--resume", "nowhere.pt"], "no such file"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(trained, capsys, arguments, message):
    before = trained.read_bytes()
    arguments = [str(trained) if a == "FILE" else a for a in arguments]
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert trained.read_bytes() == before


@pytest.mark.parametrize("option", [["--epochs", "0"], ["--lr", "nan"], ["--momentum", "1"]])
def test_values_out_of_range_are_refused(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "lenet", *option])
    assert caught.value.code == 2 and option[0] in capsys.readouterr().err


def test_other_pictures_are_refused(trained, monkeypatch, capsys):
    digits = data.digits()
    digits.images[0] += 1
    monkeypatch.setattr(train, "digits", lambda share: digits)
    assert main(["train", "--resume", str(trained)]) == 2
    assert "other pictures" in capsys.readouterr().err


def test_validation_reports_on_what_was_held_out(capsys):
    arguments = ("train", "lenet", "--validation", "--epochs", "1", "--threads", "1")
    assert main(arguments) == 0
    assert "of 800 validation pictures" in capsys.readouterr().out


# --- predict ------------------------------------------------------------------------------------


def write_digit(path, index, invert=False):
    pixels = data.digits().images[index, 0].numpy()
    Image.fromarray(255 - pixels if invert else pixels).save(path)
    return str(path)


def test_predict_prints_probabilities(trained, tmp_path, capsys):
    paths = [write_digit(tmp_path / f"{i}.png", i) for i in (40, 2700)]
    capsys.readouterr()
    assert main(["predict", "--checkpoint", str(trained), "--top", "10", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == paths[0] and lines[11] == paths[1] and len(lines) == 22
    shares = [float(line.split("%")[0]) for line in lines[1:11]]
    assert sum(shares) == pytest.approx(100, abs=0.06) and shares == sorted(shares, reverse=True)
    assert {line.split()[-1] for line in lines[1:11]} == set("0123456789")


def test_invert_gives_what_the_digit_gives(trained, tmp_path, capsys):
    right = write_digit(tmp_path / "a.png", 40)
    turned = write_digit(tmp_path / "b.png", 40, invert=True)
    capsys.readouterr()
    assert main(["predict", "--checkpoint", str(trained), right]) == 0
    expected = capsys.readouterr().out.splitlines()[1:]
    assert main(["predict", "--checkpoint", str(trained), "--invert", turned]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == expected
    main(["predict", "--checkpoint", str(trained), turned])
    assert "--invert" in capsys.readouterr().err


def test_predict_says_what_is_wrong(trained, tmp_path, capsys):
    digit = write_digit(tmp_path / "a.png", 0)
    (tmp_path / "cut.pt").write_bytes(trained.read_bytes()[:5000])
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    content = torch.load(trained, weights_only=True)
    content["network"] = "vgg11"
    torch.save(content, tmp_path / "wrong.pt")
    for checkpoint, picture, message in (
        (tmp_path / "cut.pt", digit, "cut.pt"),
        (tmp_path / "other.pt", digit, "not a checkpoint of"),
        (tmp_path / "wrong.pt", digit, "do not fit vgg11"),
        (trained, str(trained), "not a picture"),
    ):
        assert main(["predict", "--checkpoint", str(checkpoint), picture]) == 2
        assert message in capsys.readouterr().err


def test_a_folder_is_learned_and_predicted(tmp_path, capsys):
    numbers = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(15):
            pixels = numbers.integers(0, 90, (30 + i, 44, 3), dtype=np.uint8)
            pixels[:, :, channel] += 150
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    path, picture = tmp_path / "colours.pt", tmp_path / "data" / "red" / "3.png"
    arguments = ["train", "classic_cnn", "--data", str(tmp_path / "data"), "--epochs", "6"]
    options = ["--batch-size", "8", "--lr", "0.001", "--threads", "1", "--checkpoint", str(path)]
    assert main([*arguments, *options]) == 0
    assert "6 of 6 test pictures" in capsys.readouterr().out
    assert main(["predict", "--checkpoint", str(path), "--top", "1", str(picture)]) == 0
    assert capsys.readouterr().out.split()[-1] == "red"


@pytest.mark.slow
def test_lenet_reaches_97_percent(capsys):
    """Mean over three seeds, on the test digits, with the default settings."""
    right = []
    for seed in range(3):
        assert main(["train", "lenet", "--seed", str(seed)]) == 0
        right.append(int(capsys.readouterr().out.split(": ")[1].split(" of 1000")[0]))
    assert sum(right) >= 3 * 970, right
