"""Damaged and foreign files of a run folder: typed values, or one line that says why there are none."""

import json
import math
import os

import pytest

from flowdiff.runs import records
from flowdiff.runs.metrics_csv import MetricsCSV
from flowdiff.runs.result_table import show
from flowdiff.runs.run_folder import RunError, RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "it does not contain a mapping"),
        (b"- a\n- b\n", "it does not contain a mapping"),
        (b"a:\n\tb: 1\n", "found character that cannot start any token in line 2"),
        (b"\xff\xfe\0\0", "unacceptable character #x0000: control characters are not allowed"),
        (b"plugins: []\nseed: 2024-01-01\n", "seed is a date, which is the type of no setting"),
        (b"plugins: []\n1: 2\n", "it has 1 as a key"),
        (b"plugins: &a [*a]\n", "it contains itself"),
        (b"seed: " + 5000 * b"9", "Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_a_damaged_config_has_a_reason(folder, content, reason):
    if content is not None:
        folder.config_file.write_bytes(content)
    with pytest.raises(records.Unreadable) as caught:
        records.read_config(folder.config_file)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, records.Foreign)
    assert not records.is_foreign(folder.path)


def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_not_waited_for(folder):
    os.mkfifo(folder.config_file)
    folder.metrics.mkdir()
    with pytest.raises(records.Unreadable, match="does not contain a mapping"):
        records.read_config(folder.config_file)
    with pytest.raises(records.Unreadable, match="Is a directory"):
        records.read_csv(folder.metrics)
    assert folder.progress() == (0, None)


@pytest.mark.parametrize("text", ["model: resnet\nlr: 0.1\n", "1: 2\nnull: 3\n", "seed: 2024-01-01\nname: x\n"])
def test_a_config_of_another_program_is_told_apart(folder, text):
    folder.config_file.write_text(text)
    assert records.is_foreign(folder.path)
    with pytest.raises(RunError, match=r"is not a run of flowdiff, its config.yaml is of another program \(it has"):
        RunFolder.open(folder.path)


@pytest.mark.parametrize("text", ["{}", "seed: 0\n", "plugins: []\nbehaviour: x\n", "network: {name: unet}\nnew: 1\n"])
def test_a_config_of_an_older_or_a_newer_version_is_a_config(folder, text):
    folder.config_file.write_text(text)
    assert RunFolder.open(folder.path).config() == records.read_config(folder.config_file)


def test_a_result_keeps_its_good_values_and_names_the_others(folder, capsys):
    good = {"metrics": {"test_loss": 0.5, "bpd": None}, "steps": 8, "seconds": {"train": 1.5}, "another": [1]}
    bad = {"seed": [1, 2], "overrides": None, "parameters": 10**30, "name": {"a": 1}}
    metrics = {**good["metrics"], "big": 10**400, "text": "0.5", "flag": True, "old": math.nan}
    folder.result_file.write_text(json.dumps({**good, **bad, "metrics": metrics}))
    result, wrong = records.read_result(folder.result_file)
    assert math.isnan(result["metrics"].pop("old"))
    assert result == good
    assert set(wrong) == {"metrics.big", "metrics.text", "metrics.flag", *bad}
    assert folder.is_complete
    assert folder.test_loss() == 0.5
    show(folder.result(), folder.path)
    assert "0.5000" in capsys.readouterr().out


@pytest.mark.parametrize("metrics", [None, [1, 2], "x", 3])
def test_a_result_without_readable_metrics_is_shown(folder, metrics, capsys):
    folder.result_file.write_text(json.dumps({"metrics": metrics, "name": "flow.x=[/b]", "seconds": {}}))
    assert records.read_result(folder.result_file) == ({"name": "flow.x=[/b]", "seconds": {}}, ("metrics",))
    assert folder.test_loss() is None
    show(folder.result(), folder.path)
    assert "flow.x=[/b]  (?)" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"null", b"[1]", b'{"metr', b"\xff\xfe\0", 100_000 * b"["])
def test_damaged_json_is_neither_a_result_nor_a_failure_nor_a_pruning(folder, content):
    for file in (folder.result_file, folder.failed_file, folder.pruned_file, folder.label_file):
        file.write_bytes(content)
    readers = {"result": records.read_result, "failed": records.read_failure, "pruned": records.read_pruning}
    for name, read in readers.items():
        with pytest.raises(records.Unreadable):
            read(folder.path / f"{name}.json")
    assert (folder.is_complete, folder.failure()) == (False, "failed.json cannot be read")
    assert (folder.pruned(), folder.label()) == (None, None)


def test_json_with_values_of_other_types(folder):
    folder.failed_file.write_text('{"error": null}')
    folder.pruned_file.write_text('{"step": "x", "metric": 3, "value": "q", "study": "s"}')
    folder.label_file.write_text('{"run_id": "1", "name": "n", "sweep": null, "overrides": null}')
    assert (folder.failure(), folder.pruned(), folder.label()) == ("failed.json cannot be read", None, None)
    folder.write_failure("Traceback (most recent call last):\n  File x\nValueError: \x1b[31mred\x1b[0m")
    assert folder.failure() == "ValueError: \ufffd[31mred\ufffd[0m"


@pytest.mark.parametrize(
    ("content", "progress"),
    [
        (None, (0, None)),
        (b"", (0, None)),
        (b"step,train_loss\n", (0, None)),
        (b"step,train_loss,val_loss\n49,0.5,\n99,0.25,\n100,,0.3\n", (101, 0.25)),
        (b"step,train_loss,val_loss\n49,0.5,\n99,0.2", (50, 0.5)),  # a row half written
        (b"step,train_loss\n" + b"".join(b"%d,%f\n" % (i, i / 10) for i in range(100_000)), (100_000, 9999.9)),
        (b"a,b\n1,2\n", (0, None)),
        (b"\0\xff\xfe\n,,,\n", (0, None)),
        (b"step,train_loss\n0,1\nabc,def\n1,0.5,7,8\n2", (2, 0.5)),
        (b"train_loss,step\n0.25,7\n0.5\n", (8, 0.25)),
        (b"\xef\xbb\xbfstep,train_loss\n3,nan\n" + 400 * b"9" + b",1\n", (4, None)),
        (b"step,train_loss\n1," + 200_000 * b"9" + b"\n", (0, None)),  # longer than a cell may be
    ],
    ids=range(12),
)
def test_the_progress_is_what_can_be_read_from_the_end_of_the_table(folder, content, progress):
    if content is not None:
        folder.metrics.write_bytes(content)
    assert folder.progress() == progress


def test_a_run_that_continues_keeps_the_good_rows_or_refuses_the_table(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text("step,train_loss,b\n0,1,\nabc,2,\n1,abc,7,8\n2,0.5\n3,9,9\n")
    csv = MetricsCSV(table)
    csv.truncate(2)
    csv.log_metrics({"train_loss": 0.25}, 3)
    assert table.read_text() == "step,train_loss,b\n0,1,\n1,,7\n2,0.5,\n3,0.25,\n"
    for content in (b"a,b\n1,2\n", b"step,\xff\n1,2\n"):
        table.write_bytes(content)
        with pytest.raises(RunError, match=r"metrics.csv is not what a run writes \(.*\): move it elsewhere"):
            MetricsCSV(table).truncate(2)
        assert table.read_bytes() == content


def test_evaluations_that_cannot_be_read_are_kept(folder):
    folder.evaluations.write_bytes(b"sampler,fd\nheun,\xff\n")
    for ask in (folder.check_evaluations, lambda: folder.append_evaluation({"sampler": "heun"})):
        with pytest.raises(RunError, match=r"evaluations.csv cannot be read \(.*\): move it elsewhere"):
            ask()
    assert folder.evaluations.read_bytes() == b"sampler,fd\nheun,\xff\n"


def test_one_line():
    assert records.one_line("a\n  b\x00") == "a b\ufffd"
    assert records.one_line(400 * "x") == 299 * "x" + "…"
    assert records.one_line(OSError(2, "No such file")) == "No such file"
