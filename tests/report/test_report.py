import os
import subprocess
import sys

import pytest
from fake_runs import write_run

from flowdiff.cli.report import main
from flowdiff.errors import RunError
from flowdiff.report import read, report

FILES = {"report.csv", "report.md", "report.html", "sampling.csv", "plots"}


def test_the_command_prints_and_writes(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main([str(sweep), "--out", str(tmp_path / "deep" / "out")]) == 0
    printed = capsys.readouterr().out
    assert "fd_cnn" in printed
    assert "failed: n_flows=10,activation=tanh: RuntimeError: loss is nan at step 40" in printed
    assert f"to {tmp_path / 'deep' / 'out'}" in printed
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == FILES


def test_by_default_it_writes_beside_the_runs_and_again(tmp_path, capsys):
    write_run(tmp_path / "sweep" / "a", flow={"n_flows": 1})
    write_run(tmp_path / "sweep" / "b", flow={"n_flows": 2})
    for _ in range(2):  # the report of the first time is no run of the second
        assert main([str(tmp_path / "sweep")]) == 0
    assert "2 runs: 2 complete." in capsys.readouterr().out
    assert (tmp_path / "sweep" / "report" / "report.html").is_file()


def test_several_folders_make_one_report(tmp_path):
    write_run(tmp_path / "x" / "a", flow={"n_flows": 1})
    write_run(tmp_path / "y" / "b", flow={"n_flows": 2})
    made = report([tmp_path / "x", tmp_path / "y"], tmp_path / "out")
    assert [run.label for run in made.runs] == ["x/a", "y/b"]
    assert (tmp_path / "out" / "report.md").read_text().count("\n| 1 |") == 1


@pytest.mark.parametrize("arguments", [["nowhere"], ["empty"]])
def test_no_runs_is_a_sentence_and_nothing_is_written(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"^(nowhere does not exist|empty contains no run)"):
        main(arguments)
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir("empty") == []


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/report cannot be made: .*--out"):
        report([tmp_path / "runs"], tmp_path / "file" / "report")


def test_a_full_disk_is_a_sentence_and_keeps_the_earlier_report(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "a")
    out = tmp_path / "out"
    report([tmp_path / "runs"], out)
    before = (out / "report.md").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"report.csv cannot be written: No space left on device; give another folder"):
        report([tmp_path / "runs"], out)
    assert (out / "report.md").read_bytes() == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_runs_of_all_kinds_go_through_without_a_warning(tmp_path):
    write_run(tmp_path / "only")
    assert len(report([tmp_path], tmp_path / "report").table.rows) == 1
    write_run(tmp_path / "stopped", complete=False)
    (write_run(tmp_path / "old") / "result.json").write_text("{}")
    (write_run(tmp_path / "empty") / "config.yaml").write_text("")
    made = read([tmp_path])
    made.write_tables(tmp_path / "report")
    made.write_page(tmp_path / "report")
    assert "Missing from result.json" in (tmp_path / "report" / "report.md").read_text()


def test_neither_torch_nor_pyplot_is_imported(tmp_path):
    write_run(tmp_path / "a", flow={"n_flows": 1}, evaluations=True)
    write_run(tmp_path / "b", flow={"n_flows": 2}, evaluations=True)
    code = (
        "import sys; from flowdiff.report import report; report([sys.argv[1]], sys.argv[2])\n"
        "print({'torch', 'lightning', 'hydra', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
