"""Folders of pictures: classes by subfolder, cropping, resizing, and errors."""

import numpy as np
import pytest
import torch
from PIL import Image
from prepared_data import prepared

from flowdiff.errors import DataError


def save(path, width=8, height=8, colour=(10, 20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).convert(mode).save(path)


def read(path, **settings):
    return prepared("image_folder", path=str(path), **{"image_size": 8, **settings})


def read_one(path, pixels, **settings):
    """The image that is made of a folder with one picture."""
    Image.fromarray(pixels).save(path / "a.png")
    return read(path, test_path=str(path), **settings).train[0].x


@pytest.mark.parametrize("turned", [False, True])
def test_largest_centred_square_is_kept_and_resized_only_where_needed(turned, tmp_path):
    # Three fields of 16 × 16 side by side, dark, bright, dark: the centred square is the bright one.
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 200
    x = read_one(tmp_path, pixels.transpose(1, 0, 2) if turned else pixels)
    assert x.shape == (1, 3, 8, 8)
    # Lanczos must not use pixels outside the square, so the field stays flat.
    assert x.unique().tolist() == [200]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert torch.equal(read_one(tmp_path, pixels)[0], torch.from_numpy(pixels).permute(2, 0, 1))


def classes(root, names=("ant", "bee", "cat"), each=4):
    for k, name in enumerate(names):
        for i in range(each):
            save(root / name / f"{i}.png", colour=(k, i, 0))
    return root


def test_subfolders_are_classes_in_sorted_order(tmp_path):
    root, test = classes(tmp_path / "train"), classes(tmp_path / "test", each=1)
    data = read(root, test_path=str(test), num_classes=3)
    assert (len(data.train), len(data.test)) == (12, 3)
    for split in (data.train, data.test):
        batch = split[:]
        assert batch.x.dtype == torch.uint8
        assert batch.x.shape[1:] == (3, 8, 8)
        assert torch.equal(batch.x[:, 0, 0, 0].long(), batch.label)  # the colour encodes the class


def test_flat_and_nested_pictures_count_when_unconditional(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.JPG")
    save(tmp_path / "deep" / "er" / "c.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    data = read(tmp_path, test_fraction=0.3)
    assert (len(data.train), len(data.test)) == (2, 1)
    assert data.train[:].label.tolist() == [0, 0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_declared_channels(mode, channels, tmp_path):
    save(tmp_path / "a.png", colour=(255, 255, 255), mode=mode)
    x = read(tmp_path, test_path=str(tmp_path), channels=channels).train[0].x
    assert x.shape == (1, channels, 8, 8)
    assert x.unique().tolist() == [255]


def test_a_folder_that_does_not_fit_or_has_a_damaged_picture_is_named(tmp_path):
    root = classes(tmp_path / "train")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "flat" / "a.png")
    save(tmp_path / "flat" / "b.png")
    other = classes(tmp_path / "other", names=("ant", "bee", "dog"))
    for path, settings, sentence in (
        (tmp_path / "missing", {}, r"dataset\.path=.*missing is not a folder"),
        (tmp_path / "empty", {}, "holds no pictures"),
        (root, {"num_classes": 4}, "3 class subfolders .* dataset.num_classes=4"),
        (tmp_path / "flat", {"num_classes": 2}, r"a\.png lies in no class subfolder"),
        (root, {"test_path": str(tmp_path / "missing")}, r"dataset\.test_path=.*is not a folder"),
        (root, {"test_path": str(other), "num_classes": 3}, "same class subfolders.* has cat, dog"),
    ):
        with pytest.raises(DataError, match=sentence):
            read(path, **settings)
    (root / "ant" / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.png cannot be decoded"):
        read(root, test_path=str(root)).train[:]
