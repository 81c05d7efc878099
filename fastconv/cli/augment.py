"""Random changes to a batch of pictures, made of torch's tensor operations.

Every random number comes from one torch.Generator, so the same generator state gives the same
pictures to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How far pictures are changed, each by amounts of its own, uniform within these bounds.

    shift: of the picture's size, each way. rotate: degrees, each way. zoom: 1 ± zoom. crop: the
    largest share of the size that a random window leaves out. flip: mirror every second picture.
    jitter: brightness, contrast and, with three channels, saturation are scaled by 1 ± jitter.
    """

    shift: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    crop: float = 0.0
    flip: bool = False
    jitter: float = 0.0

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) in [0, 1] to the same size, in [0, 1]."""
        if self.shift or self.rotate or self.zoom or self.crop or self.flip:
            batch = self._moved(batch, generator)
        if self.jitter and batch.shape[1] == 3:
            batch = self._recoloured(batch, generator)
        return batch

    def _moved(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Shift, rotation, zoom, crop and flip as one resampling; edges are continued.

        The output's place p, in [-1, 1] x [-1, 1], shows the input's place A p + t, where A is a
        rotation times a scale. Rotation is in pixels, so a picture wider than high stays in shape.
        """
        n, _, height, width = batch.shape

        def uniform(bound: float) -> Tensor:
            return (torch.rand(n, generator=generator) * 2 - 1) * bound

        angle = uniform(math.radians(self.rotate))
        window = 1 - torch.rand(n, generator=generator) * self.crop
        scale = window * (1 + uniform(self.zoom))
        mirror = torch.where(torch.rand(n, generator=generator) < 0.5 * self.flip, -1.0, 1.0)
        # A window of that size lies anywhere inside the picture, then the shift moves it.
        across = uniform(1.0) * (1 - window) + uniform(2 * self.shift)
        down = uniform(1.0) * (1 - window) + uniform(2 * self.shift)

        cosine, sine = angle.cos() * scale, angle.sin() * scale
        first = torch.stack((cosine * mirror, -sine * (height / width), across), 1)
        second = torch.stack((sine * mirror * (width / height), cosine, down), 1)
        grid = F.affine_grid(torch.stack((first, second), 1), batch.shape, align_corners=False)
        return F.grid_sample(batch, grid, padding_mode="border", align_corners=False)

    def _recoloured(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Brightness, then contrast about the picture's mean, then saturation about its grey."""

        def factor() -> Tensor:
            uniform = torch.rand(len(batch), 1, 1, 1, generator=generator) * 2 - 1
            return 1 + uniform * self.jitter

        luma = torch.tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
        batch = (batch * factor()).clamp(0, 1)
        grey = (batch * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        batch = (grey + (batch - grey) * factor()).clamp(0, 1)
        grey = (batch * luma).sum(1, keepdim=True)
        return (grey + (batch - grey) * factor()).clamp(0, 1)


DIGITS = Augmentation(shift=0.05, rotate=8.0, zoom=0.08)  # a mirrored digit is none
PICTURES = Augmentation(crop=0.3, flip=True, jitter=0.3)
