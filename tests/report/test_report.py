import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from flowdiff.cli.report import main
from flowdiff.errors import RunError
from flowdiff.report import read, report
from flowdiff.testing.fake_runs import write_run, write_runs

FILES = {"report.csv", "report.md", "report.html", "sampling.csv", "plots"}


def test_the_command_prints_and_writes(swept, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    out = tmp_path / "deep" / "out"
    assert main([*swept.folders, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    failed = "failed: n_flows=10,activation=tanh: RuntimeError: loss is nan at step 40"
    assert [part in printed for part in ("fd_cnn", failed, f"to {out}")] == [True] * 3
    assert {path.name for path in out.iterdir()} == FILES


def test_by_default_it_writes_beside_the_runs_and_again(tmp_path, capsys):
    write_runs(tmp_path, "flow.n_flows=1", "flow.n_flows=2")
    for _ in range(2):  # the second time, the report of the first is not taken for a run
        assert main([str(tmp_path)]) == 0
    assert "2 runs: 2 complete." in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").is_file()


def test_several_folders_make_one_report(tmp_path):
    made = read([write_runs(tmp_path / "x", "flow.n_flows=1"), write_runs(tmp_path / "y", "flow.n_flows=2")])
    made.write_tables(tmp_path)
    assert [run.label for run in made.runs] == ["x/0", "y/0"]
    assert (tmp_path / "report.md").read_text().count("\n| 1 |") == 1


def test_files_beside_the_runs_are_left_out(tmp_path, capsys):
    """As a shell gives them for multirun/*; a file alone is an error."""
    (tmp_path / "README.md").write_text("")
    names = [str(tmp_path / "README.md"), *(write_runs(tmp_path / sweep, "seed=0") for sweep in ("x", "y"))]
    assert main(list(map(str, names))) == 0
    assert "2 runs: 2 complete." in capsys.readouterr().out
    assert (tmp_path / "x" / "report" / "report.html").is_file()
    with pytest.raises(RunError, match=r"README.md is a file"):
        main(names[:1])


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_without_runs_the_error_is_a_sentence_and_nothing_is_written(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"^(nowhere does not exist|empty contains no run)"):
        main([folder])
    assert (os.listdir(tmp_path), os.listdir("empty")) == (["empty"], [])


def test_what_cannot_be_written_is_a_sentence_and_keeps_the_earlier_report(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/report cannot be created: .*--out"):
        report([write_runs(tmp_path / "one", "seed=0")], tmp_path / "file" / "report")
    out = tmp_path / "out"
    made = report([write_runs(tmp_path / "runs", "seed=0")], out)
    before = (out / "report.md").read_bytes()
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(RunError, match=r"report.csv cannot be written: No space left on device"):
        made.write_tables(out)
    assert (out / "report.md").read_bytes() == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_runs_of_all_kinds_are_reported_without_a_warning(tmp_path):
    out = tmp_path / "report"
    write_run(tmp_path / "stopped", complete=False, picture=False)
    (write_run(tmp_path / "broken") / "config.yaml").write_text("[")
    assert {run.state for run in report([tmp_path], out).runs} == {"unfinished", "unreadable"}
    assert "config.yaml cannot be read" in (out / "report.html").read_text()
    write_run(tmp_path / "only")
    assert len(report([tmp_path], out).table.rows) == 1
    (write_run(tmp_path / "old") / "result.json").write_text("{}")
    (write_run(tmp_path / "empty") / "config.yaml").write_text("")
    report([tmp_path], out)
    assert "Missing from result.json" in (out / "report.md").read_text()


def test_neither_torch_nor_pyplot_is_imported(tmp_path):
    runs = write_runs(tmp_path / "runs", *(f"flow.n_flows={n} rows=60 evaluations=true" for n in (1, 2)))
    code = (
        "import sys; from flowdiff.report import report; report([sys.argv[1]], sys.argv[2])\n"
        "print({'torch', 'lightning', 'hydra', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    command = [sys.executable, "-W", "error", "-c", code, runs, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
