"""Data sets, pictures and augmentation."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastconv.cli import data
from fastconv.cli.augment import DIGITS, PICTURES, Augmentation
from fastconv.cli.common import CommandError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def colour_picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- splits -------------------------------------------------------------------------------------


def test_digits_are_split_alike_in_every_class():
    digits = data.digits()
    assert digits.images.shape == (5000, 1, 28, 28) and digits.images.dtype == torch.uint8
    assert digits.labels[digits.train].bincount().tolist() == [400] * 10
    assert digits.labels[digits.test].bincount().tolist() == [100] * 10
    assert len(digits.validation) == 0


def test_validation_takes_nothing_from_the_test():
    whole, held_out = data.digits(), data.digits(0.2)
    assert torch.equal(whole.test, held_out.test)
    parts = torch.cat([held_out.train, held_out.validation])
    assert len(held_out.validation) == 800
    assert torch.equal(parts.sort().values, whole.train)


def test_normalisation_is_of_the_training_pictures_alone():
    digits = data.digits()
    pixels = digits.images[digits.train].long()
    count, total, squares = pixels.numel(), pixels.sum().item(), (pixels**2).sum().item()
    mean, std = digits.normalisation()  # compared with what exact integers give
    assert mean[0] == pytest.approx(total / count / 255, rel=1e-12)
    variance = (squares * count - total**2) / (count * 255) ** 2
    assert std[0] == pytest.approx(variance**0.5, rel=1e-12)


def test_fingerprint_sees_one_pixel():
    digits = data.digits()
    before = digits.fingerprint()
    digits.images[17, 0, 5, 9] += 1
    assert digits.fingerprint() != before


# --- pictures -----------------------------------------------------------------------------------


def test_a_picture_of_the_right_size_is_read_as_it_is(tmp_path):
    pixels = colour_picture(12, 20)
    picture = data.read_picture(save(tmp_path / "a.png", pixels), (3, 12, 20))
    assert torch.equal(picture, torch.from_numpy(pixels).movedim(2, 0))


@pytest.mark.parametrize("height, width", [(12, 40), (40, 12), (7, 7), (301, 500)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_size_are_fitted(tmp_path, height, width, fit, channels):
    path = save(tmp_path / "a.png", np.full((height, width, 3), 200))
    picture = data.read_picture(path, (channels, 28, 20), fit)
    assert picture.shape == (channels, 28, 20)
    assert (picture == 200).all()


def test_crop_keeps_the_middle_and_pad_keeps_all():
    picture = torch.zeros(1, 10, 30, dtype=torch.uint8)
    picture[:, :, :10], picture[:, :, 20:] = 90, 250
    assert (data.fitted(picture, 10, 10, "crop") == 0).all()
    padded = data.fitted(picture, 30, 30, "pad")
    assert padded[0, 0, 0] == 90 and padded[0, 29, 29] == 250 and padded[0, 15, 15] == 0
    with pytest.raises(ValueError, match="stretch"):
        data.fitted(picture, 10, 10, "stretch")


def test_sixteen_bits_and_transparency(tmp_path):
    deep = np.full((6, 9), 257 * 100, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (data.read_picture(tmp_path / "deep.png", (1, 6, 9)) == 100).all()
    clear = np.zeros((6, 9, 4), dtype=np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (data.read_picture(tmp_path / "clear.png", (3, 6, 9)) == 255).all()


def test_unreadable_pictures_are_named(tmp_path):
    whole = save(tmp_path / "a.png", colour_picture(64, 48)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("half.png", "text.png", "missing.png"):
        with pytest.raises(CommandError, match=name):
            data.read_picture(tmp_path / name, (3, 8, 8))


def test_crops_are_windows_of_the_photograph():
    photograph = torch.from_numpy(colour_picture(40, 50)).movedim(2, 0)
    windows = data.crops(photograph, 3, 16, 12, seed=0)
    places = photograph.unfold(1, 16, 1).unfold(2, 12, 1).permute(1, 2, 0, 3, 4)
    for window in windows:
        assert (places == window).flatten(2).all(2).any()
    assert data.crops(photograph, 2, 80, 30, seed=0).shape == (2, 3, 80, 30)


def test_prepared_repeats_grey_and_normalises():
    batch = torch.full((2, 1, 14, 10), 0.5)
    fed = data.prepared(batch, (3, 28, 20), [0.3], [0.1])
    assert fed.shape == (2, 3, 28, 20)
    torch.testing.assert_close(fed, torch.full_like(fed, 2.0))


# --- folders ------------------------------------------------------------------------------------


def make_folder(root, counts):
    for name, count in counts.items():
        (root / name).mkdir()
        for i in range(count):
            save(root / name / f"{i:02}.png", colour_picture(9 + i, 14, i))
    return root


def test_folder_has_a_class_for_each_subfolder(tmp_path):
    root = make_folder(tmp_path, {"dog": 10, "cat": 5})
    (root / "cat" / "notes.txt").write_text("not a picture")
    found = data.folder(root, (3, 8, 8), 0.25)
    assert found.classes == ("cat", "dog")
    assert found.labels.bincount().tolist() == [5, 10]
    assert found.labels[found.test].bincount().tolist() == [1, 2]
    assert found.labels[found.validation].bincount().tolist() == [1, 2]
    again = data.folder(root, (3, 8, 8), 0.25)
    assert found.fingerprint() == again.fingerprint()


@pytest.mark.parametrize(
    "counts, message", [({"a": 9}, "1 subfolders"), ({"a": 9, "b": 1}, "b has 1 pictures")]
)
def test_folders_that_are_too_small(tmp_path, counts, message):
    with pytest.raises(CommandError, match=message):
        data.folder(make_folder(tmp_path, counts), (3, 8, 8))
    with pytest.raises(CommandError, match="is not a folder"):
        data.folder(tmp_path / "missing", (3, 8, 8))


def test_folder_names_the_broken_picture(tmp_path):
    root = make_folder(tmp_path, {"a": 5, "b": 5})
    (root / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(CommandError, match="broken.jpg"):
        data.folder(root, (3, 8, 8))


# --- augmentation -------------------------------------------------------------------------------


def blobs(count=64, height=40, width=28):
    """A disc in the middle of each picture, its radius 8 pixels."""
    y = torch.arange(height).view(-1, 1) - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    disc = (8.5 - (y**2 + x**2).sqrt()).clamp(0, 1)
    return disc.expand(count, 1, height, width).clone()


def centres(batch):
    """The centre of mass of each picture, (N, 2), down and across."""
    mass = batch.sum((1, 2, 3))
    down = (batch.sum((1, 3)) * torch.arange(batch.shape[2])).sum(1) / mass
    across = (batch.sum((1, 2)) * torch.arange(batch.shape[3])).sum(1) / mass
    return torch.stack([down, across], 1)


@pytest.mark.parametrize("augmentation", [DIGITS, PICTURES], ids=["digits", "pictures"])
def test_augmentation_is_a_function_of_the_generator(augmentation):
    batch = torch.rand(4, 3, 20, 12, generator=generator(1))
    first = augmentation(batch.clone(), generator())
    assert torch.equal(first, augmentation(batch.clone(), generator()))
    assert not torch.equal(first, augmentation(batch.clone(), generator(5)))
    assert first.shape == batch.shape and 0 <= first.min() and first.max() <= 1
    assert not torch.equal(first[0], first[1])


def test_no_augmentation_changes_nothing():
    batch = torch.rand(4, 3, 20, 12)
    assert torch.equal(Augmentation()(batch, generator()), batch)


def test_shift_moves_the_centre_within_its_bound():
    moves = centres(Augmentation(shift=0.1)(blobs(), generator())) - centres(blobs())
    bounds = torch.tensor([4.0, 2.8])
    assert (moves.abs() <= bounds + 0.05).all()
    assert (moves.abs().amax(0) > 0.8 * bounds).all() and (moves.std(0) > 0.4 * bounds).all()


def test_rotation_leaves_a_disc_as_it_is_in_a_picture_that_is_not_square():
    turned = Augmentation(rotate=60)(blobs(), generator())
    assert (turned - blobs()).abs().max() < 0.45  # its rim is one pixel of interpolation
    assert (turned - blobs()).abs().mean() < 0.01


def test_rotation_turns():
    bar = torch.zeros(32, 1, 41, 31)
    bar[:, :, 5:36, 14:17] = 1
    turned = Augmentation(rotate=30)(bar, generator())
    assert ((turned - bar).abs().mean((1, 2, 3)) > 0.02).sum() > 16


def test_zoom_changes_the_area():
    areas = Augmentation(zoom=0.2)(blobs(), generator()).sum((1, 2, 3)) / blobs().sum((1, 2, 3))
    assert areas.min() > 0.66 and areas.max() < 1.6  # 1 / 1.2^2 and 1 / 0.8^2
    assert areas.min() < 0.8 and areas.max() > 1.3


def test_crop_shows_only_what_is_in_the_picture():
    ramp = torch.linspace(0, 1, 30).expand(64, 1, 20, 30)
    cut = Augmentation(crop=0.5)(ramp, generator())
    widths = cut[:, 0, 0, -1] - cut[:, 0, 0, 0]
    assert widths.min() < 0.6 and 0.9 < widths.max() <= 1
    steps = (cut[:, 0, 0, 1:-1].diff(dim=1)).std(1)
    assert steps.max() < 1e-4  # nowhere the repeated edge: the window lies inside


def test_flip_mirrors_about_every_second():
    batch = torch.rand(64, 3, 6, 10, generator=generator(1))
    flipped = Augmentation(flip=True)(batch, generator())
    mirrored = (flipped - batch.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    kept = (flipped - batch).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored ^ kept).all() and 16 < mirrored.sum() < 48
    assert not DIGITS.flip


def test_jitter_keeps_shapes_and_greys():
    grey = torch.rand(8, 1, 6, 10, generator=generator(1)).expand(-1, 3, -1, -1)
    changed = Augmentation(jitter=0.4)(grey, generator())
    torch.testing.assert_close(changed, changed[:, :1].expand_as(changed))
    assert (changed - grey).abs().max() > 0.05
    one_channel = grey[:, :1]
    assert torch.equal(Augmentation(jitter=0.4)(one_channel, generator()), one_channel)
    colours = torch.rand(8, 3, 6, 10, generator=generator(2))
    spread = Augmentation(jitter=0.4)(colours, generator()).std(1).mean((1, 2))
    assert (spread / colours.std(1).mean((1, 2))).std() > 0.05
