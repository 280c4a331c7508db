"""Odd names of folders, and Hydra's own numbering of them, on the command lines of train.py and sample.py."""

from cli_process import check_mistakes


def test_an_odd_name_reaches_the_program_as_it_was_given(tmp_path):
    names = ["a=b", "ärger", "a,b", "a(b)", "a#b", "a[b]", "a b", "2024"]
    for name in names:
        (tmp_path / name).mkdir()
    for program, key in (("sample", "run"), ("train", "resume")):
        given = [f"{key}={name}" for name in names]
        quoted = [f"{key}='{name}'" for name in names]
        said = [f"run={name} is not a run folder, it has no config.yaml" for name in names]
        check_mistakes(
            program, [([one], text) for one, text in zip(given + quoted, said + said, strict=True)], tmp_path
        )


def test_numbered_folders_are_refused_and_leave_nothing(tmp_path):
    numbered = ["seed=1", "-m", "hydra.sweep.dir=d", "hydra.sweep.subdir=${hydra.job.num}"]
    check_mistakes("train", [(numbered, "hydra.sweep.subdir=${hydra.job.num} is not known before the runs")], tmp_path)
    assert not (tmp_path / "d").exists()
