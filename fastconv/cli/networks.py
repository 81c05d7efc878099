"""Building the networks by name, and what training and validation ask of any of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv.nn
from fastconv import models

AUXILIARY_WEIGHT = 0.3  # of each auxiliary head's loss; Szegedy et al., 2014, section 5
# "googlenet" is the paper's; its other form is validated too.
VARIANTS = {"googlenet_torchvision": ("googlenet", {"variant": "torchvision"})}
NAMES = (*models.NETWORKS, *VARIANTS)


def builder_of(name: str) -> tuple[str, dict[str, Any]]:
    """The name in `models.NETWORKS` and the arguments that a name of `NAMES` stands for."""
    return VARIANTS.get(name, (name, {}))


def class_count(name: str, count: int) -> dict[str, int]:
    """The builder's argument for the number of classes."""
    return {"classes" if name == "classic_cnn" else "num_classes": count}


def input_size(name: str) -> tuple[int, int, int]:
    """(C, H, W) that the network is made for."""
    return models.input_size(builder_of(name)[0])


def build(
    name: str, arguments: Mapping[str, Any] | None = None, layers=fastconv.nn
) -> torch.nn.Module:
    """The network of that name.

    Raises:
        TypeError: arguments that its builder does not take.
    """
    builder, variant = builder_of(name)
    return models.NETWORKS[builder](**variant, **(arguments or {}), layers=layers)


def heads_of(outputs: Tensor | tuple) -> list[Tensor]:
    """The (N, classes) scores of every head, the main one first."""
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    return [head for head in heads if head is not None]


def loss_of(heads: list[Tensor], labels: Tensor) -> Tensor:
    """Cross entropy of the main head plus `AUXILIARY_WEIGHT` times that of each other one."""
    main, *auxiliary = (F.cross_entropy(head, labels) for head in heads)
    return main + AUXILIARY_WEIGHT * sum(auxiliary) if auxiliary else main
