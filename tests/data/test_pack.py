"""A packed folder is read back as the folder itself: pixels, classes, captions, splits."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from flowdiff.cli import data as command
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.registry import create

SIZES = [(9, 12), (20, 8), (8, 8), (16, 16), (30, 31), (8, 9)]


@pytest.fixture
def folder(tmp_path):
    """Pictures of many sizes in two classes, one of them transparent, with captions."""
    rng = np.random.default_rng(0)
    path, rows = tmp_path / "pictures", []
    for i, size in enumerate(SIZES):
        file = path / ("cats" if i % 2 else "a dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*size, 4 if i == 2 else 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        rows.append(json.dumps({"file_name": f"{file.parent.name}/{file.name}", "text": f"picture {i}"}))
    (path / "metadata.jsonl").write_text("\n".join(rows))
    return path


def both(folder, archive, **given):
    """The data set of the folder, and that of its archive."""
    settings = {"image_size": 8, **given}
    return [
        create("dataset", "image_folder", path=str(folder), **settings),
        create("dataset", "image_zip", path=str(archive), **settings),
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_read_back_as_the_folder(folder, channels, tmp_path, capsys):
    archive = tmp_path / "out.zip"
    assert command.main(["pack", str(folder), str(archive), "--size", "8", *(["--grey"] if channels == 1 else [])]) == 0
    assert "Wrote 6 pictures of 2 classes, with captions" in capsys.readouterr().out
    one, other = both(folder, archive, channels=channels, num_classes=2)
    assert other.count_classes() == 2
    for data in (one, other):
        data.setup()
    for mine, theirs in ((one.train, other.train), (one.test, other.test)):
        assert torch.equal(mine[:].x, theirs[:].x)
        assert torch.equal(mine[:].label, theirs[:].label)
        assert mine[:].captions == theirs[:].captions


def test_the_archive_has_the_convention_of_edm(folder, tmp_path):
    command.main(["pack", str(folder), str(tmp_path / "out.zip"), "--size", "8", "--no-labels"])
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        assert file.namelist() == [*(f"00000/img{i:08d}.png" for i in range(6)), "dataset.json"]
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
        about = json.loads(file.read("dataset.json"))
        assert about["labels"] is None
        assert about["captions"][0] == ["00000/img00000000.png", ["picture 0"]]
        assert Image.open(io.BytesIO(file.read("00000/img00000000.png"))).size == (8, 8)
    one, other = both(folder, tmp_path / "out.zip", num_classes=None)
    for data in (one, other):
        data.setup()
    assert torch.equal(one.train[:].x, other.train[:].x)


def test_sentences(folder, tmp_path):
    def refused(kind, sentence, *given):
        with pytest.raises(kind, match=sentence):
            command.main(["pack", *map(str, given), "--size", "8"])
        assert [path.name for path in tmp_path.iterdir()] == ["pictures"]  # nothing half-written

    refused(ConfigurationError, "ending in .zip", folder, tmp_path / "out.tar")
    refused(ConfigurationError, "a folder that exists", folder, tmp_path / "no" / "out.zip")
    refused(DataError, "is not a folder", tmp_path / "nowhere", tmp_path / "out.zip")
    (folder / "loose.png").write_bytes((folder / "cats" / "1.png").read_bytes())
    refused(DataError, r"lies in no class subfolder.*--no-labels", folder, tmp_path / "out.zip")
    (folder / "loose.png").unlink()
    (folder / "cats" / "1.png").write_bytes(b"no picture")
    refused(DataError, "cannot be decoded", folder, tmp_path / "out.zip")
