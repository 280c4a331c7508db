"""Tables of pictures: Parquet, save_to_disk, their captions and classes, and what is wrong with them."""

import io
import json
import sys

import pytest
from PIL import Image
from prepared_data import prepared

from flowdiff import registry
from flowdiff.errors import DataError


@pytest.fixture(scope="module")
def pa():
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    return pyarrow


def png(red):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (red, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def table(pa, reds, texts=None, **columns):
    """Rows as datasets writes them: {"bytes", "path"}, captions, classes whose names lie in the schema."""
    cells = [{"bytes": png(red), "path": None} for red in reds]
    texts = [f"the number {red}" for red in reds] if texts is None else texts
    made = pa.table({"image": cells, "text": texts, "label": [red % 2 for red in reds], **columns})
    info = {"info": {"features": {"label": {"names": ["even", "odd"], "_type": "ClassLabel"}}}}
    return made.replace_schema_metadata({"huggingface": json.dumps(info)})


def saved(pa, folder, made):
    """Part of what save_to_disk writes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, made.schema) as out,
    ):
        out.write_table(made)
    return folder


def check(data, said=lambda red: (f"the number {red}",)):
    reds = []
    for split in (data.train, data.test):
        batch = split[:]
        red = [int(x) for x in batch.x[:, 0, 0, 0]]
        assert batch.captions == [said(i) for i in red]
        reds += red
    assert sorted(reds) == list(range(6))


def test_parquet_files_and_saved_folders(pa, tmp_path):
    for i in range(2):
        pa.parquet.write_table(table(pa, range(3 * i, 3 * i + 3)), tmp_path / f"{i}.parquet")
    check(prepared("image_table", path=str(tmp_path), image_size=8))
    saved(pa, tmp_path / "saved" / "train", table(pa, range(6)))
    data = prepared("image_table", path=str(tmp_path / "saved" / "train"), image_size=8, num_classes=2)
    check(data)
    assert [k % 2 for k in data.train[:].x[:, 0, 0, 0].tolist()] == data.train[:].label.tolist()
    with pytest.raises(DataError, match=r"saved holds no .arrow .*: name one of its splits, .*train\."):
        prepared("image_table", path=str(tmp_path / "saved"), image_size=8)


def test_names_of_classes_make_captions(pa, tmp_path):
    pa.parquet.write_table(table(pa, range(6)), tmp_path / "a.parquet")
    given = {"path": str(tmp_path / "a.parquet"), "image_size": 8, "caption_template": "an {} one"}
    assert registry.create("dataset", "image_table", **given).count_classes() == 2
    check(prepared("image_table", num_classes=2, **given), lambda red: (f"an {'odd' if red % 2 else 'even'} one",))


def test_several_captions_bytes_and_paths(pa, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(png(i))
    texts = [[f"the number {i}", f"a {i}"] for i in range(6)]
    cells = [{"bytes": None, "path": f"pictures/{i}.png"} for i in range(6)]
    for column in (cells, [png(i) for i in range(6)]):
        pa.parquet.write_table(pa.table({"img": column, "caption": texts}), tmp_path / "a.parquet")
        data = prepared("image_table", path=str(tmp_path), image_size=8, image_column="img", caption_column="caption")
        check(data, lambda i: (f"the number {i}", f"a {i}"))


def test_what_is_wrong_with_a_table_is_a_sentence(pa, tmp_path):
    path = tmp_path / "a.parquet"
    two = range(2)

    def read(**settings):
        return prepared("image_table", path=str(path), image_size=8, **settings)

    broken = [
        (table(pa, two, ["red", " "]), {}, "row 1 of .* has the caption ' ': write a text"),
        (table(pa, two, ["red", None]), {}, "row 1 of .* has the caption None: write a text"),
        (
            table(pa, two),
            {"caption_column": "says"},
            "has no column says where dataset.caption_column=says is declared",
        ),
        (table(pa, two), {"num_classes": 2, "label_column": "text"}, "row 0 of .* has the label 'the number 0' where"),
        (table(pa, []), {}, "has no rows"),
        (table(pa, two).set_column(0, "image", pa.array([b"", b""])), {}, "row . of .* cannot be decoded"),
    ]
    for made, settings, sentence in broken:
        pa.parquet.write_table(made, path)
        with pytest.raises(DataError, match=sentence):
            read(**settings)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="a.parquet cannot be read"):
        read()
    pa.parquet.write_table(table(pa, two), path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="a.parquet cannot be read"):
        read()


def test_a_missing_table_and_a_missing_package_are_sentences(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="does not exist: set dataset.path to a Parquet file or a folder"):
        prepared("image_table", path=str(tmp_path / "none"), image_size=8)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow: pip install 'flowdiff\[data\]'"):
        prepared("image_table", path=str(tmp_path), image_size=8)
