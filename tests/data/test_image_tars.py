"""Tars of pictures: their captions and classes, and what is wrong with them."""

import io
import json
import pickle
import random
import tarfile

import pytest
import torch
from PIL import Image
from prepared_data import prepared

from flowdiff import registry
from flowdiff.data.image_tars import BLOCK
from flowdiff.errors import DataError


def png(red, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def write(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard(path, first, n=4):
    """n samples in a tar, as webdataset writes them; the picture of sample i has the red level i."""
    files = {}
    for i in range(first, first + n):
        files |= {f"some/{i:05d}.png": png(i), f"some/{i:05d}.cls": str(i % 3)}
        if i % 2:
            files[f"some/{i:05d}.txt"] = f"the number {i}\nnumber {i}\n"
        else:  # img2dataset
            files[f"some/{i:05d}.json"] = json.dumps({"caption": f"the number {i}", "url": "…"})
    return write(path, files)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """A folder of two tars of four samples each."""
    folder = tmp_path_factory.mktemp("tars")
    shard(folder / "00000.tar", 0)
    shard(folder / "00001.tar", 4)
    return folder


def said(i):
    return (f"the number {i}", f"number {i}") if i % 2 else (f"the number {i}",)


def test_pictures_captions_and_classes_are_read_at_their_positions(tars):
    data = prepared("image_tars", path=str(tars), image_size=8, num_classes=3, test_fraction=0.25)
    assert (len(data.train), len(data.test)) == (6, 2)
    reds = []
    for split in (data.train, data.test):
        batch = split[:]
        red = [int(x) for x in batch.x[:, 0, 0, 0]]
        assert batch.captions == [said(i) for i in red]
        assert batch.label.tolist() == [i % 3 for i in red]
        assert torch.equal(pickle.loads(pickle.dumps(split))[[1, 0]].x, batch.x[[1, 0]])
        reds += red
    assert sorted(reds) == list(range(8))


def test_one_tar_as_test_split_and_pictures_of_any_size(tars, tmp_path):
    test = write(tmp_path / "test.tar", {"a.jpg": png(9, (20, 10)), "a.txt": "nine", "._a.jpg": "left by a system"})
    data = prepared("image_tars", path=str(tars / "00000.tar"), test_path=str(test), image_size=8)
    assert len(data.train) == 4
    batch = data.test[:]
    assert batch.captions == [("nine",)]
    assert (batch.x[:, 0] == 9).all()
    assert not batch.label.any()


def test_classes_are_counted(tars):
    assert registry.create("dataset", "image_tars", path=str(tars)).count_classes() == 3


def test_without_captions_there_are_none(tmp_path):
    path = write(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(3)})
    assert prepared("image_tars", path=str(path), image_size=8).train.captions is None


JSON = '{\n"url": "",\n"caption": a red three}'
BROKEN = [
    ({"a.png": png(0), "a.txt": "red", "b.png": png(1)}, r"b.png in .*a.tar has no caption: add a .txt or .json"),
    ({"a.png": png(0), "a.txt": " \n"}, None),
    ({"a.png": png(0), "a.json": JSON}, r"line 3 of a.json in .*a.tar is not JSON \(Expecting value\)"),
    ({"a.png": png(0), "a.json": "[1]"}, r"a.json in .*a.tar is not a JSON object"),
    ({"a.png": png(0), "a.json": '{"text": 3}'}, r"a.json in .*a.tar has the caption 3: write a text"),
    ({"a.png": png(0), "a.txt": b"\xff"}, r"a.txt in .*a.tar is not text in UTF-8"),
    ({"a.txt": "red"}, r"dataset.path=.* holds no pictures \(.*\) in tar files"),
]


@pytest.mark.parametrize(("files", "sentence"), BROKEN, ids=[str(said)[:30] for _, said in BROKEN])
def test_what_is_wrong_with_a_sample_is_a_sentence(tmp_path, files, sentence):
    path = write(tmp_path / "a.tar", files | {"z.png": png(2), "z.txt": "z"} if sentence is None else files)
    sentence = sentence or r"a.png in .*a.tar has no caption"
    with pytest.raises(DataError, match=sentence):
        prepared("image_tars", path=str(path), image_size=8)


def test_a_class_is_a_number_of_every_picture(tmp_path):
    for content, sentence in (
        ("cat", "a.cls in .* holds 'cat' where a class number"),
        (None, "a.png in .* has no class"),
    ):
        path = write(tmp_path / "a.tar", {"a.png": png(0)} | ({} if content is None else {"a.cls": content}))
        with pytest.raises(DataError, match=sentence):
            registry.create("dataset", "image_tars", path=str(path)).count_classes()


def test_a_tar_that_is_cut_short_is_a_sentence_wherever_it_is_cut(tars, tmp_path):
    whole = (tars / "00000.tar").read_bytes()
    with tarfile.open(tars / "00000.tar") as tar:
        ends = [member.offset for member in tar][1:]  # each file ends where the header of the next begins
    last = len(whole.rstrip(b"\0"))
    path = tmp_path / "a.tar"
    # In a header, in the middle of a picture, between any two files, behind the last one.
    for length in (BLOCK // 2, BLOCK + 20, *ends, -(-last // BLOCK) * BLOCK):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a.tar is cut short, after"):
            prepared("image_tars", path=str(path), image_size=8)
    path.write_bytes(whole)
    assert len(prepared("image_tars", path=str(path), image_size=8).train) == 3


def test_what_is_no_tar_is_a_sentence(tmp_path):
    write(tmp_path / "a.tar", {"a.png": random.Random(0).randbytes(5000)}, "w:gz")
    (tmp_path / "b.tar").write_bytes(b"nothing" * 500)
    for name, sentence in (
        ("a.tar", "is not an uncompressed tar"),
        ("b.tar", "is not an"),
        ("c.tar", "does not exist"),
    ):
        with pytest.raises(DataError, match=sentence):
            prepared("image_tars", path=str(tmp_path / name), image_size=8)
