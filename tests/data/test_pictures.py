"""What becomes of odd but legal pictures and files: 16 bits, transparency, palettes, links, hidden files, giants."""

import io
import json
import logging
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from flowdiff import config, registry
from flowdiff.data.image_files import pillow
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.runs.identity import run_id

SIDE = 8
RED, CLEAR = (200, 10, 10, 255), (7, 8, 9, 0)


def grey(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def wide(levels):
    """16 bits of the same brightness as 8-bit levels."""
    return levels.astype(np.uint16) * 257


def spotted():
    """A red square on transparent ground whose hidden colour is almost black, RGBA."""
    pixels = np.full((SIDE, SIDE, 4), CLEAR, np.uint8)
    pixels[2:4, 2:4] = RED
    return pixels


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path.parent


def archive(path, pictures, labels=None, prefix="", extra=()):
    with zipfile.ZipFile(path, "w") as file:
        for i, picture in enumerate(pictures):
            buffer = io.BytesIO()
            (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, "png")
            file.writestr(f"{prefix}{i}.png", buffer.getvalue())
        if labels is not None:
            pairs = [[f"{i}.png", label] for i, label in enumerate(labels)]
            file.writestr(f"{prefix}dataset.json", json.dumps({"labels": pairs}))
        for name, content in extra:
            file.writestr(name, content)
    return path


def folder(path, **settings):
    return registry.create("dataset", "image_folder", path=str(path), **{"image_size": SIDE, **settings})


def zipped(path, **settings):
    return registry.create("dataset", "image_zip", path=str(path), **{"image_size": SIDE, **settings})


def first(data):
    """The first training picture, (C, H, W), of a data set that is tested on its training pictures."""
    data.test_path = data.path
    data.setup()
    return data.train[0].x[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_become_the_8_bits_of_the_same_brightness(channels, tmp_path):
    root = save(tmp_path / "a" / "0.png", wide(grey()))
    expected = torch.from_numpy(grey()).expand(channels, SIDE, SIDE)
    assert torch.equal(first(folder(root, channels=channels)), expected)
    if channels == 1:
        assert torch.equal(first(zipped(archive(tmp_path / "a.zip", [wide(grey())]), channels=1)), expected)


def test_the_transparent_level_of_16_bits_is_replaced_too(tmp_path):
    levels = np.full((SIDE, SIDE), 1000, np.uint16)
    levels[0] = 300
    save(tmp_path / "0.png", levels, transparency=300)
    x = first(folder(tmp_path, channels=1, background="black"))
    assert x[0, :, 0].tolist() == [0] + 7 * [round(1000 / 257)]


@pytest.mark.parametrize(
    ("colour", "seen"), [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#102030", (16, 32, 48))]
)
def test_transparent_pixels_show_the_background_and_the_log_says_it_once(colour, seen, tmp_path, caplog):
    for i in range(3):
        save(tmp_path / f"{i}.png", spotted())
    with caplog.at_level(logging.INFO, "flowdiff"):
        data = folder(tmp_path, background=colour)
        x = first(data)
        assert data.train[:].x.shape[0] == 3
    assert tuple(x[:, 0, 0].tolist()) == seen
    assert tuple(x[:, 2, 2].tolist()) == RED[:3]
    said = [record.getMessage() for record in caplog.records if "transparent" in record.getMessage()]
    assert len(said) == 1
    assert f"0.png has transparent pixels: dataset.background={colour} is put behind them" in said[0]


def test_an_alpha_channel_without_transparency_changes_nothing(tmp_path, caplog):
    pixels = np.dstack([np.stack([grey(i) for i in range(3)], -1), np.full((SIDE, SIDE), 255, np.uint8)])
    save(tmp_path / "0.png", pixels)
    with caplog.at_level(logging.INFO, "flowdiff"):
        assert torch.equal(first(folder(tmp_path)), torch.from_numpy(pixels[..., :3]).permute(2, 0, 1))
    assert not caplog.records


def test_palettes_and_alpha_of_a_zip_are_converted_as_in_a_folder(tmp_path):
    palette = Image.fromarray(spotted()[..., :3]).quantize(4)
    for picture in (palette, Image.fromarray(spotted()), Image.fromarray(grey()).convert("P")):
        name = picture.mode + str(picture.getpixel((0, 0)))
        root = save(tmp_path / name / "0.png", picture)
        assert torch.equal(first(zipped(archive(tmp_path / f"{name}.zip", [picture]))), first(folder(root)))


def test_a_background_that_is_no_colour_is_refused():
    for name in ("whit", "#12", "rgba(0,0,0,0)"):
        with pytest.raises(ConfigurationError, match=rf"dataset\.background={name[:3]}.* is not a colour"):
            folder("anywhere", background=name)


def test_the_background_counts_in_a_run_id_only_where_it_is_not_white():
    def id_of(node):
        return run_id({"dataset": node})

    node = config.defaults("dataset", "image_folder")
    old = {key: value for key, value in node.items() if key != "background"}
    assert node["background"] == "white"
    assert id_of(node) == id_of(old) != id_of({**node, "background": "black"})


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    for name in ("ant", "bee"):
        save(tmp_path / "there" / name / "0.png", grey())
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / "there" / name)
    (tmp_path / "there" / "ant" / "up").symlink_to(tmp_path / "there" / "ant")
    (tmp_path / "there" / "bee" / "gone").symlink_to(tmp_path / "nowhere")
    data = folder(tmp_path / "data", num_classes=2)
    data.setup()
    assert len(data.train) + len(data.test) == 2


JUNK = (".ipynb_checkpoints/0.png", "ant/._0.png", "ant/.DS_Store", "bee/Thumbs.db", "__MACOSX/ant/._0.png")


def test_hidden_files_and_what_systems_leave_are_no_pictures(tmp_path):
    for name in ("ant", "bee"):
        save(tmp_path / name / "0.png", grey())
    for name in JUNK:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    data = folder(tmp_path, num_classes=2)
    data.setup()
    assert len(data.train) + len(data.test) == 2
    assert data.count_classes() == 2
    path = archive(tmp_path / "a.zip", [grey(), grey()], [0, 1], extra=[(name, b"\0\5\x16\7") for name in JUNK])
    data = zipped(path, channels=1, num_classes=2)
    data.setup()
    assert len(data.train) + len(data.test) == 2


def test_a_hidden_folder_above_the_data_hides_nothing(tmp_path):
    root = save(tmp_path / ".cache" / "0.png", grey())
    assert first(folder(root)).shape == (3, SIDE, SIDE)


def test_a_zip_made_from_its_folder_has_its_labels(tmp_path):
    extra = [("__MACOSX/mydata/dataset.json", b"no labels")]
    path = archive(tmp_path / "a.zip", [grey(i) for i in range(4)], [0, 1, 2, 1], prefix="mydata/", extra=extra)
    data = zipped(path, channels=1, num_classes=3)
    data.test_path = data.path
    data.setup()
    assert data.train[:].label.tolist() == [0, 1, 2, 1]


@pytest.mark.filterwarnings("error")
def test_a_picture_of_too_many_pixels_is_named_with_its_size(tmp_path, monkeypatch):
    picture = Image.new("1", (200, 100))
    root = save(tmp_path / "a" / "big.png", picture)
    path = archive(tmp_path / "a.zip", [picture])
    pillow.cache_clear()  # it turns PIL's warning off when it imports PIL, and pytest turns it on again
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)  # PIL warns above it and refuses twice as much
    assert first(folder(root)).shape == (3, SIDE, SIDE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    for data, name in ((folder(root), r"a/big\.png"), (zipped(path, channels=1), r"0\.png in .*a\.zip")):
        with pytest.raises(DataError, match=rf"{name} is 200×100 pixels where at most 10,000 in all are decoded"):
            first(data)
    assert Image.MAX_IMAGE_PIXELS == 5_000


def test_every_error_of_a_decoder_names_the_file(tmp_path):
    save(tmp_path / "0.png", grey())
    content = (tmp_path / "0.png").read_bytes()
    for bad in (content[:60], b"", content[:40] + bytes(20) + content[60:]):
        (tmp_path / "0.png").write_bytes(bad)
        with pytest.raises(DataError, match=r"0\.png cannot be decoded \(.+\): replace or remove it"):
            first(folder(tmp_path))
    save(tmp_path / "0.png", Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), format="TIFF")
    with pytest.raises(DataError, match=r"0\.png cannot be decoded \(the range of its levels, of mode F, is unknown"):
        first(folder(tmp_path))
