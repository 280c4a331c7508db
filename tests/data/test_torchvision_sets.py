"""torchvision's layouts, in tiny files written here, and in the real files if FLOWDIFF_DATA names them."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from idx_files import arrays, write_idx, write_idx_set
from prepared_data import holds, prepared

from flowdiff import registry
from flowdiff.data.torchvision_sets import IDX_FILES, TorchvisionSet
from flowdiff.errors import DataError

NAMES = [n for n in registry.names("dataset") if issubclass(registry.resolve("dataset", n), TorchvisionSet)]
IDX_NAMES = [n for n in NAMES if registry.resolve("dataset", n).files == IDX_FILES]


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to open an address is recorded and fails, as without a network."""
    import urllib.error
    import urllib.request

    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return attempts


@pytest.mark.parametrize("name", IDX_NAMES)
def test_reads_idx_files_without_touching_the_network(name, tmp_path, no_network):
    train, test = arrays((28, 28), 12, 0), arrays((28, 28), 5, 1)
    write_idx_set(tmp_path, name, train, test)
    data = prepared(name, root=str(tmp_path), download=True)
    for split, (x, label) in ((data.train, train), (data.test, test)):
        holds(split, x[:, None], label)
    assert not no_network


def test_reads_cifar_batches(tmp_path, monkeypatch, no_network):
    import torchvision.datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    parts = [arrays((3, 32, 32), 3, seed) for seed in range(6)]
    for file, (x, label) in zip([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], parts, strict=True):
        (folder / file).write_bytes(pickle.dumps({"data": x.reshape(3, -1), "labels": label.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # torchvision knows the check sums of the real files: keep only the check that the files exist.
    reader = torchvision.datasets.CIFAR10
    for field in ("train_list", "test_list"):
        monkeypatch.setattr(reader, field, [[file, None] for file, _ in getattr(reader, field)])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": None})

    data = prepared("cifar10", root=str(tmp_path), download=True)
    holds(data.train, *(np.concatenate(part) for part in zip(*parts[:5], strict=True)))
    holds(data.test, *parts[5])
    assert not no_network


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_without_download(name, tmp_path, no_network):
    with pytest.raises(DataError, match=r"nowhere.*dataset\.download=true.*dataset\.root"):
        prepared(name, root=str(tmp_path / "nowhere"), download=False)
    assert not no_network


@pytest.mark.parametrize("name", NAMES)
def test_failed_download_is_one_sentence_and_leaves_no_files(name, tmp_path, no_network):
    data = registry.create("dataset", name, root=str(tmp_path), download=True)
    with pytest.raises(DataError, match=r"could not be downloaded \(.*no network.*dataset\.root") as caught:
        data.prepare_data()
    assert data.files[0] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert no_network
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", IDX_NAMES)
def test_download_completes_a_folder(name, tmp_path, monkeypatch):
    import torchvision.datasets

    train, test = arrays((28, 28), 4, 0), arrays((28, 28), 2, 1)
    reader = getattr(torchvision.datasets, registry.resolve("dataset", name).reader)
    monkeypatch.setattr(reader, "download", lambda self: write_idx_set(Path(self.root), name, train, test))
    data = prepared(name, root=str(tmp_path / "new"), download=True)
    holds(data.train, train[0][:, None], train[1])
    assert [path.name for path in (tmp_path / "new").iterdir()] == [Path(data.folder).parts[0]]  # no temporary left


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("truncated", "cannot be read"),
        ("short labels", "6 images but 5 labels"),
        ("wrong size", r"shape \(1, 20, 20\)"),
    ],
)
def test_damaged_files_are_refused(damage, sentence, tmp_path):
    side = 20 if damage == "wrong size" else 28
    write_idx_set(tmp_path, "mnist", arrays((side, side), 6, 0), arrays((side, side), 6, 1))
    folder = tmp_path / "MNIST/raw"
    if damage == "truncated":
        images = folder / IDX_FILES[0]
        images.write_bytes(images.read_bytes()[:-5])
    if damage == "short labels":
        write_idx(folder / IDX_FILES[1], np.zeros(5, np.uint8))
    with pytest.raises(DataError, match=sentence):
        prepared("mnist", root=str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_real_files(name):
    root = os.environ.get("FLOWDIFF_DATA")
    component = registry.resolve("dataset", name)
    if root is None or not all((Path(root) / component.folder / file).is_file() for file in component.files):
        pytest.skip("FLOWDIFF_DATA does not hold the files")
    data = prepared(name, root=root, download=False)
    assert (len(data.train), len(data.test)) == ((50000, 10000) if name == "cifar10" else (60000, 10000))
    assert data.test.label.unique().tolist() == list(range(10))
    assert data.test[:1000].x.max() == 255
