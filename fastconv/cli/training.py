"""The training loop.

The state between two steps is the model, the optimizer and the number of steps made: the learning
rate is a function of that number, and every step draws its random numbers (order of the pictures,
augmentation, dropout) from generators seeded by the seed and that number. A run that goes on from a
saved state therefore computes what an uninterrupted run computes, to the bit.

With `amp` the forward pass runs under torch.autocast, parameters stay float32, and float16's
gradients are scaled, torch.amp's way. On a GPU everything is channels_last, and a step waits for
the device once, to read its loss.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .augment import Augmentation
from .common import CommandError
from .data import Dataset, prepared
from .networks import build, class_count, heads_of, input_size, loss_of

WARM_UP = 0.1  # of all steps
OPTIMIZERS = ("adamw", "sgd")
EVALUATION_BATCH = 100


@dataclass(frozen=True)
class Settings:
    """All that a run depends on, besides its pictures."""

    network: str
    seed: int
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float
    dropout: float | None
    validation: bool
    threads: int
    shift: float
    rotate: float
    zoom: float
    crop: float
    flip: bool
    jitter: float
    amp: str | None = None  # the dtype of autocast

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.shift, self.rotate, self.zoom, self.crop, self.flip, self.jitter)


def seed_for(seed: int, purpose: str, number: int) -> int:
    """A seed of its own for each purpose and number; 32 bits are what torch's generator takes."""
    return zlib.crc32(f"{seed} {purpose} {number}".encode())


def generator_for(seed: int, purpose: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, purpose, number))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Up in a line over the first `WARM_UP` of the steps, then down by half a cosine to zero."""
    warm_up = max(1, round(steps * WARM_UP))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def network_arguments(settings: Settings, classes: int) -> dict[str, Any]:
    """What the network's builder is called with."""
    arguments: dict[str, Any] = class_count(settings.network, classes)
    if settings.dropout is not None:
        arguments["dropout"] = settings.dropout
    return arguments


class Training:
    """A network on its way: `step` counts the steps made, `history` has a row for each epoch.

    Raises:
        CommandError: the network takes no dropout.
    """

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device) -> None:
        self.settings, self.dataset, self.device = settings, dataset, device
        self.arguments = network_arguments(settings, len(dataset.classes))
        self.size = input_size(settings.network)
        self.mean, self.std = dataset.normalisation()
        torch.manual_seed(settings.seed)
        try:
            self.model = self._placed(build(settings.network, self.arguments))
        except TypeError as error:
            raise CommandError(f"--dropout: {settings.network} has no dropout") from error
        self.optimizer = self._make_optimizer()
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "float16")
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._start_epoch()

    def _placed(self, what):
        """A module or a batch of pictures on the device, in the layout that is fast there."""
        fast = {"cuda": torch.channels_last}.get(self.device.type, torch.preserve_format)
        return what.to(self.device, memory_format=fast)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        settings, parameters = self.settings, self.model.parameters()
        decay = settings.weight_decay
        fused = self.device.type == "cuda"  # it takes the scaler's results without waiting
        if settings.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, settings.lr, settings.momentum, weight_decay=decay, fused=fused
            )
        betas = (settings.momentum, 0.999)
        return torch.optim.AdamW(parameters, settings.lr, betas, weight_decay=decay, fused=fused)

    def _start_epoch(self) -> None:
        self.loss_sum, self.right, self.seen = 0.0, 0, 0

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.dataset.train) / self.settings.batch_size)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.settings.epochs

    @property
    def loss(self) -> float:
        """Mean over this epoch so far."""
        return self.loss_sum / max(1, self.seen)

    @property
    def accuracy(self) -> float:
        """Share of this epoch's pictures so far that were classified right."""
        return self.right / max(1, self.seen)

    def state(self) -> dict[str, Any]:
        """What `load_state` goes on from, besides the model."""
        return {
            "step": self.step,
            "history": self.history,
            "epoch": [self.loss_sum, self.right, self.seen],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, model: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self.model.load_state_dict(model)
        optimizer = state["optimizer"]
        own = zip(optimizer["param_groups"], self.optimizer.param_groups, strict=True)
        # The state may be of another device, where optimizers are not fused as they are here.
        groups = [{**group, "fused": here["fused"]} for group, here in own]
        self.optimizer.load_state_dict({**optimizer, "param_groups": groups})
        self.scaler.load_state_dict(state.get("scaler", {}))  # older checkpoints have none
        self.step, self.history = state["step"], list(state["history"])
        self.loss_sum, self.right, self.seen = state["epoch"]

    def run(self) -> Iterator[bool]:
        """Makes the steps that are left; after each, yields whether it ended an epoch.

        Raises:
            CommandError: the loss is no longer finite.
        """
        self.model.train()
        while self.step < self.steps:
            if self.step % self.steps_per_epoch == 0:
                self._start_epoch()
            self._make_step()
            ended = self.step % self.steps_per_epoch == 0
            if ended:
                self._end_epoch()
            yield ended

    def _make_step(self) -> None:
        settings = self.settings
        epoch, position = divmod(self.step, self.steps_per_epoch)
        train = self.dataset.train
        order = torch.randperm(len(train), generator=generator_for(settings.seed, "order", epoch))
        start = position * settings.batch_size
        indices = train[order[start : start + settings.batch_size]]

        pictures = self.dataset.images[indices].float() / 255
        generator = generator_for(settings.seed, "augmentation", self.step)
        pictures = settings.augmentation(pictures, generator)
        labels = self.dataset.labels[indices].to(self.device)

        torch.manual_seed(seed_for(settings.seed, "dropout", self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, settings.lr)
        self.optimizer.zero_grad()
        with self._autocast():
            heads = heads_of(self.model(self._fed(pictures)))
        heads = [head.float() for head in heads]
        loss = loss_of(heads, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

        right = (heads[0].argmax(1) == labels).sum()
        mean_loss, right = torch.stack((loss.detach(), right)).tolist()
        if not math.isfinite(mean_loss):
            raise CommandError(
                f"the loss is {mean_loss} at step {self.step}; a lower --lr may help", status=1
            )
        self.step += 1
        self.loss_sum += mean_loss * len(indices)
        self.right += int(right)
        self.seen += len(indices)

    def _autocast(self) -> torch.autocast:
        amp = self.settings.amp
        return torch.autocast(
            self.device.type, None if amp is None else getattr(torch, amp), enabled=amp is not None
        )

    def _end_epoch(self) -> None:
        row = {"loss": self.loss, "accuracy": self.accuracy}
        if self.settings.validation:
            row["validation loss"], right = self.evaluate(self.dataset.validation)
            row["validation accuracy"] = right / len(self.dataset.validation)
        self.history.append(row)

    def _fed(self, pictures: Tensor) -> Tensor:
        return self._placed(prepared(pictures, self.size, self.mean, self.std))

    def evaluate(self, indices: Tensor) -> tuple[float, int]:
        """Mean loss, and how many of these pictures are classified right, in eval mode."""
        was_training = self.model.training
        self.model.eval()
        loss, right = 0.0, 0
        with torch.no_grad():
            for part in indices.split(EVALUATION_BATCH):
                scores = self.model(self._fed(self.dataset.images[part].float() / 255))
                labels = self.dataset.labels[part].to(self.device)
                loss += nn.functional.cross_entropy(scores, labels, reduction="sum").item()
                right += int((scores.argmax(1) == labels).sum())
        self.model.train(was_training)
        return loss / len(indices), right
