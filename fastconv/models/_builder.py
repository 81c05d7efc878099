"""What the builders of the torchvision networks share."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


def torchvision_signature(build: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    """Let `build` be called as torchvision's builder: `weights` and `progress` besides its own.

    Raises:
        ValueError: `weights` is not None; nothing is downloaded.
    """

    @functools.wraps(build)
    def builder(*, weights: None = None, progress: bool = True, **options) -> torch.nn.Module:
        if weights is not None:
            raise ValueError(
                f"weights must be None, got {weights!r}: fastconv downloads no weights; "
                "give a torchvision state_dict to load_state_dict"
            )
        return build(**options)

    return builder
