"""EDM-format archives are read back pixel by pixel, and every archive that does not fit is an error."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prepared_data import holds, prepared

from flowdiff.data.base import held_out
from flowdiff.errors import DataError

PAIRS = "pairs"  # write the labels as EDM does


def pictures(n, channels=3, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def member(i):
    return f"{i // 4:05d}/img{i:08d}.png"


def write(path, images, labels=None, info=PAIRS):
    """An archive of `images`; labels None writes null, info None no dataset.json, other text replaces it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image.squeeze()).save(buffer, "png")
            archive.writestr(member(i), buffer.getvalue())
        if info is PAIRS:
            pairs = None if labels is None else [[member(i), int(k)] for i, k in enumerate(labels)]
            # EDM's labels come in any order.
            info = json.dumps({"labels": pairs and pairs[::-1]})
        if info is not None:
            archive.writestr("dataset.json", info)
    return str(path)


def read(path, **settings):
    return prepared("image_zip", path=path, **{"image_size": 8, "batch_size": 4, **settings})


@pytest.mark.parametrize("channels", [1, 3])
def test_reads_what_was_written(channels, tmp_path):
    train, test = pictures(10, channels), pictures(5, channels, seed=1)
    labels = np.arange(10) % 3
    paths = [write(tmp_path / f"{n}.zip", images, labels[:n]) for n, images in ((10, train), (5, test))]
    data = read(paths[0], test_path=paths[1], channels=channels, num_classes=3)
    assert data.shape == (channels, 8, 8)
    for split, images in ((data.train, train), (data.test, test)):
        holds(split, images.transpose(0, 3, 1, 2), labels[: len(images)])
        assert torch.equal(split[[3, 0]].x, split[:].x[[3, 0]])
        # A split can be sent to another process.
        assert torch.equal(pickle.loads(pickle.dumps(split))[:].x, split[:].x)


@pytest.mark.parametrize(("labels", "info"), [(None, PAIRS), (None, None), (range(10), PAIRS)])
def test_without_classes_every_label_is_0(labels, info, tmp_path):
    data = read(write(tmp_path / "a.zip", pictures(10), labels, info))
    assert data.num_classes is None
    assert data.train[:].label.unique().tolist() == [0]


@pytest.mark.parametrize(("n", "fraction", "num_test"), [(20, 0.25, 5), (3, 0.01, 1), (3, 0.99, 2)])
def test_holds_out_a_fixed_part(n, fraction, num_test, tmp_path):
    path = write(tmp_path / "a.zip", pictures(n), labels=range(n))
    parts = []
    for _ in range(2):
        data = read(path, num_classes=n, test_fraction=fraction)
        parts.append((data.train[:].label.tolist(), data.test[:].label.tolist()))
    assert parts[0] == parts[1]
    train, test = parts[0]
    assert len(test) == num_test
    assert sorted(train + test) == list(range(n))


@pytest.mark.parametrize(
    ("settings", "labels", "info", "sentence"),
    [
        ({"image_size": 16}, None, PAIRS, "8×8 pixels of mode RGB where dataset.image_size=16"),
        ({"channels": 1}, None, PAIRS, r"mode RGB where .*dataset.channels=1 \(mode L\)"),
        ({"num_classes": 3}, None, PAIRS, "no labels where dataset.num_classes=3"),
        ({"num_classes": 3}, None, None, "no labels where dataset.num_classes=3"),
        ({"num_classes": 3}, range(10), PAIRS, r"labels .* where 0…2 is allowed"),
        ({"num_classes": 3}, None, '{"labels": [["00000/img00000000.png", 1]]}', "no label for 00000/img00000001.png"),
        ({"num_classes": 3}, None, '{"labels": [1, 2]}', r"not a list of \[name, label\] pairs"),
        ({"num_classes": 3}, None, json.dumps({"labels": [[member(i), 0.5] for i in range(10)]}), "label 0.5 where"),
        ({}, None, "[]", "not a JSON object"),
        ({}, None, "{", "not a JSON object"),
    ],
)
def test_an_archive_that_does_not_fit(settings, labels, info, sentence, tmp_path):
    path = write(tmp_path / "a.zip", pictures(10), labels, info)
    with pytest.raises(DataError, match=sentence):
        read(path, **settings)


def test_a_file_that_is_not_an_archive_or_has_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    for path, sentence in (
        (str(tmp_path / "missing.zip"), r"dataset\.path=.*missing\.zip is not a file"),
        (str(tmp_path), "is not a file"),
        (str(tmp_path / "text.zip"), "not a readable zip"),
        (write(tmp_path / "empty.zip", []), "holds no pictures"),
        (write(tmp_path / "one.zip", pictures(1)), "one image, so none can be held out"),
    ):
        with pytest.raises(DataError, match=sentence):
            read(path)
    good = write(tmp_path / "good.zip", pictures(4))
    damaged = write(tmp_path / "damaged.zip", pictures(4))
    with zipfile.ZipFile(damaged, "a") as archive:
        archive.writestr("00009/broken.png", b"no picture")
    data = read(damaged, test_path=damaged)
    with pytest.raises(DataError, match=r"00009/broken\.png .* cannot be decoded"):
        data.train[:]
    with pytest.raises(DataError, match=r"dataset\.test_path=.*is not a file"):
        read(good, test_path=str(tmp_path / "missing.zip"))


def test_worker_processes_read_the_same(tmp_path):
    path = write(tmp_path / "a.zip", pictures(40), labels=range(40))
    batches = []
    for num_workers in (0, 2):
        data = read(
            path, num_classes=40, num_workers=num_workers
        )  # opens the archive here, before the workers are forked
        batches.append([batch for _, batch in zip(range(15), data.train_dataloader(), strict=False)])
    for alone, worker in zip(*batches, strict=True):
        assert torch.equal(alone.x, worker.x)
        assert torch.equal(alone.label, worker.label)


def test_real_archive():
    path = Path(os.environ.get("FLOWDIFF_DATA", "")) / "cifar10-32x32-test.zip"
    if "FLOWDIFF_DATA" not in os.environ or not path.is_file():
        pytest.skip("FLOWDIFF_DATA does not hold cifar10-32x32-test.zip")
    data = read(str(path), image_size=32, num_classes=10)
    assert (len(data.train), len(data.test)) == (9000, 1000)
    batch = data.train[:200]
    assert batch.x.shape == (200, 3, 32, 32)
    assert batch.label.unique().tolist() == list(range(10))


def test_captions_lie_in_dataset_json(tmp_path):
    said = {member(i): f"picture {i}" if i % 2 else [f"picture {i}", f"number {i}"] for i in range(5)}
    path = write(tmp_path / "a.zip", pictures(5), info=json.dumps({"labels": None, "captions": list(said.items())}))
    data = read(path)
    batches = data.train[:], data.test[:]
    names = sorted(said)
    for part, batch in zip(held_out(5, num_test=1), batches, strict=True):
        texts = [said[names[i]] for i in part.tolist()]
        assert batch.captions == [tuple(text) if isinstance(text, list) else (text,) for text in texts]
    assert read(write(tmp_path / "b.zip", pictures(5))).train.captions is None


@pytest.mark.parametrize(
    ("captions", "sentence"),
    [
        ([[member(0), "red"]], f"dataset.json of .* has no caption for {member(1)}: make the archive again"),
        (
            [[member(0), "red"], [member(1), " "]],
            f"has the caption ' ' for {member(1)}: write a text or a list of texts",
        ),
        ([[member(0), 3], [member(1), "red"]], f"has the caption 3 for {member(0)}"),
        ("red", "the captions in dataset.json of .* are not a list of"),
    ],
)
def test_what_is_wrong_with_captions_is_a_sentence(tmp_path, captions, sentence):
    path = write(tmp_path / "a.zip", pictures(2), info=json.dumps({"labels": None, "captions": captions}))
    with pytest.raises(DataError, match=sentence):
        read(path)
