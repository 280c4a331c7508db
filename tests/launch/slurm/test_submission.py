"""Submissions and cancelled jobs are recorded completely and in order, even by several processes at once."""

import pytest
from cli_process import code

from flowdiff.errors import RunError
from flowdiff.launch.slurm.submission import Submission, cancelled_jobs, record, record_cancelled, submissions


def made(job_id, *tasks):
    return Submission(job_id, "2030-01-02T03:04:05", ["train.py", "-m"], None, [list(task) for task in tasks])


def test_submissions_are_recorded_in_order(tmp_path):
    assert submissions(tmp_path / "none") == []
    one, two = made("7", ["a", "b"], ["c"]), made("9", ["c"])
    record(tmp_path / "sweep", one)
    record(tmp_path / "sweep", two)
    assert submissions(tmp_path / "sweep") == [one, two]
    assert [path.name for path in (tmp_path / "sweep" / "slurm").iterdir()] == ["submissions.json"]


def test_none_is_lost_when_several_submit_at_once(tmp_path):
    writes = (
        "import sys; from pathlib import Path; from flowdiff.launch.slurm.submission import *\n"
        "for i in range(20): record(Path(sys.argv[1]), Submission(f'{sys.argv[2]}{i}', '', [], None, [['a']]))"
    )
    writers = [code(writes, tmp_path, name) for name in "xyz"]
    assert [(writer.communicate()[0], writer.returncode) for writer in writers] == [("", 0)] * 3
    assert sorted(one.job_id for one in submissions(tmp_path)) == sorted(f"{n}{i}" for n in "xyz" for i in range(20))


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"job_id": "1", "unknown": 2}]'])
def test_a_broken_file_is_a_sentence(tmp_path, text):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "submissions.json").write_text(text)
    with pytest.raises(RunError, match=r"submissions.json cannot be read .*: fix or remove it"):
        submissions(tmp_path)


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        record(tmp_path / "file", made("1", ["a"]))


def test_cancelled_jobs_are_recorded(tmp_path):
    assert cancelled_jobs(tmp_path) == set()
    record_cancelled(tmp_path, ["1_0", "1_1"])
    record_cancelled(tmp_path, ["2_0", "1_0"])
    assert cancelled_jobs(tmp_path) == {"1_0", "1_1", "2_0"}
