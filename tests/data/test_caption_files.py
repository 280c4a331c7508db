"""Captions of a folder of pictures: the files that hold them, and what is wrong with them."""

import json

import pytest
from PIL import Image
from prepared_data import prepared

from flowdiff.data.caption_files import captions_in
from flowdiff.errors import DataError

NAMES = ["a.png", "b/c.png"]
CSV = "file_name,text,width\na.png,a red three,8\nb/c.png,a blue two,8\na.png,three in red,8\n"
JSONL = [{"file_name": "a.png", "text": "a red three", "width": 8}, {"file_name": "./b/c.png", "text": " a blue two "}]


def test_no_captions_are_none(tmp_path):
    assert captions_in(tmp_path, NAMES) is None


def test_a_table_of_captions(tmp_path):
    (tmp_path / "metadata.csv").write_text(CSV)
    assert captions_in(tmp_path, NAMES) == [("a red three", "three in red"), ("a blue two",)]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, JSONL)))
    assert captions_in(tmp_path, NAMES) == [("a red three",), ("a blue two",)]


def test_a_parquet_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame(JSONL).to_parquet(tmp_path / "metadata.parquet")
    assert captions_in(tmp_path, NAMES) == [("a red three",), ("a blue two",)]


def test_texts_beside_the_pictures(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("a red three\n\nthree in red\n")
    (tmp_path / "b" / "c.txt").write_text("\ufeffa blue two", encoding="utf-8")
    assert captions_in(tmp_path, NAMES) == [("a red three", "three in red"), ("a blue two",)]


BROKEN = [
    (
        "metadata.csv",
        CSV.replace("b/c.png", "d.png"),
        r"line 3 of .*metadata.csv names d.png, and .* has no such picture",
    ),
    (
        "metadata.csv",
        CSV.replace("b/c.png,a blue two,8\n", ""),
        r"b/c.png has no caption: write one into .*metadata.csv",
    ),
    ("metadata.csv", CSV.replace("a blue two", " "), r"b/c.png has no caption: write one into .*metadata.csv"),
    (
        "metadata.csv",
        CSV.replace("text", "caption"),
        r"line 2 of .* has no text in the column text: metadata.csv needs",
    ),
    (
        "metadata.jsonl",
        "\n" * 16 + '{"file_name": "a.png", "text"',
        r"line 17 of .*metadata.jsonl is not JSON \(Expecting",
    ),
    ("metadata.jsonl", "[1]", r"line 1 of .* is not a JSON object: write"),
    ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', r"line 1 of .* has no text in the column text"),
    ("metadata.csv", b"file_name,text\na.png,\xff", r"metadata.csv cannot be read .*: write it as UTF-8 text"),
    ("metadata.parquet", b"nothing", r"metadata.parquet (cannot be read|needs the package pyarrow)"),
    ("a.txt", b"\xff", r"a.txt cannot be read \(it is not text in UTF-8\)"),
    ("a.txt", b"a red three", r"b/c.png has no caption: write one into .*b/c.txt, or remove the picture"),
]


@pytest.mark.parametrize(("file", "content", "said"), BROKEN, ids=[said[:30] for *_, said in BROKEN])
def test_what_is_wrong_with_captions_is_a_sentence(tmp_path, file, content, said):
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        captions_in(tmp_path, NAMES)


def test_a_folder_of_pictures_has_its_captions(tmp_path):
    for i in range(5):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"the number {i}")
    data = prepared("image_folder", path=str(tmp_path), image_size=8)
    for split in (data.train, data.test):
        batch = split[:]
        assert batch.captions == [(f"the number {int(red)}",) for red in batch.x[:, 0, 0, 0]]
