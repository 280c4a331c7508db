import json
import os
import shutil

import pytest

from flowdiff.errors import RunError
from flowdiff.runs.collect import collect, curves, evaluations, is_housekeeping, missing_keys_note, swept_parameters
from flowdiff.testing.fake_runs import write_run, write_runs


def test_finds_runs_at_any_depth_and_each_once(tmp_path):
    write_run(tmp_path / "a" / "b" / "deep")
    write_run(tmp_path / "flat")
    # Hydra and W&B keep copies of the config inside a run, W&B also beside the runs.
    for copy in ("flat/.hydra", "flat/wandb/run/files", "wandb/run/files", "a/.submitit"):
        (tmp_path / copy).mkdir(parents=True)
        shutil.copy(tmp_path / "flat/config.yaml", tmp_path / copy)
    os.symlink(tmp_path / "a", tmp_path / "a" / "b" / "cycle")
    os.symlink(tmp_path / "flat", tmp_path / "a" / "same")
    runs = collect([tmp_path, tmp_path / "flat", tmp_path / "a" / "b"])
    assert [run.label for run in runs] == ["a/b/deep", "flat"]
    (run,) = collect([tmp_path / "flat"])  # a run folder may be given itself
    assert (run.label, run.state, run.seed) == ("flat", "complete", 0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist: give"),
        (lambda path: path.write_text(""), "is a file: give"),
        (lambda path: path.mkdir(), "contains no run: a run folder is a folder that holds config.yaml"),
    ],
)
def test_a_folder_without_runs_is_a_sentence(tmp_path, make, sentence):
    make(tmp_path / "x")
    with pytest.raises(RunError, match=sentence) as caught:
        collect([write_run(tmp_path / "good"), tmp_path / "x"])
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="no folder was given"):
        collect([])


def test_swept_parameters_leave_out_seeds_and_housekeeping(tmp_path):
    settings = "flow.n_flows=1{0} flow.channels=[{0},8] trainer.max_steps={0}00 sampler.seed={1}"
    settings += " seed={0} dataset.seed={0} dataset.num_workers={0} dataset.root=/data/{0}"
    settings += " trainer.devices={0} logger.mode={0} accelerator.name=a{0}"
    write_runs(tmp_path, *(settings.format(i, 7 + (i == 0)) for i in range(3)))
    # sampler.seed is a setting of its own; dataset.seed equals `seed` and is not.
    swept = {"flow.n_flows", "flow.channels", "sampler.seed", "trainer.max_steps"}
    assert set(swept_parameters(collect([tmp_path]))) == swept


def test_keys_that_follow_from_a_name_have_no_column_unless_overridden(tmp_path):
    heads = 'network.attention={"heads":4}'
    lines = ["network.name=score_flow network.eps=1.0", f"network.name=unet network.channels=32 {heads}"]
    lines += [f"network.name=unet network.channels=64 {heads}"]
    lines += [f"{lines[-1]} result.overrides=[network=unet,+network.attention.heads=4]"]
    for count, swept in ((2, ["network.name"]), (3, ["network.name", "network.channels"])):
        assert swept_parameters(collect([write_runs(tmp_path / str(count), *lines[:count])])) == swept
    assert "network.attention.heads" in swept_parameters(collect([write_runs(tmp_path / "all", *lines)]))


def test_equal_numbers_are_equal_settings(tmp_path):
    write_runs(tmp_path, "guidance.scale=1 guidance.flag=true", "guidance.scale=1.0 guidance.flag=true")
    assert swept_parameters(collect([tmp_path])) == []


HOUSEKEEPING = "paths.output_dir logger.mode trainer.devices dataset.num_workers tags"
SETTINGS = "trainer.max_steps flow.n_flows dataset.batch_size"


@pytest.mark.parametrize(("keys", "expected"), [(HOUSEKEEPING, True), (SETTINGS, False)])
def test_housekeeping(keys, expected):
    assert {key: is_housekeeping(key) for key in keys.split()} == dict.fromkeys(keys.split(), expected)


def test_incomplete_runs_say_why(tmp_path):
    error = "Traceback (most recent call last):\n  File x\nRuntimeError: loss is nan"
    write_run(tmp_path / "failed", complete=False, error=error, steps=40, rows=4)
    write_run(tmp_path / "retried", error="it failed before")
    write_run(tmp_path / "stopped", complete=False, steps=700)
    (write_run(tmp_path / "unstarted", complete=False) / "metrics.csv").unlink()
    (write_run(tmp_path / "half") / "result.json").write_text('{"metr')
    (write_run(tmp_path / "broken") / "config.yaml").write_text("a: [1")
    (write_run(tmp_path / "list") / "config.yaml").write_text("- 1")
    (write_run(tmp_path / "odd", complete=False) / "failed.json").write_text("[]")
    pruned = '{"step": 600, "metric": "val_loss", "value": 0.71234, "study": "1a2b3c4d"}'
    (write_run(tmp_path / "pruned", complete=False, steps=700) / "pruned.json").write_text(pruned)
    found = {run.label: (run.state, run.reason) for run in collect([tmp_path])}
    unreadable = [found.pop(label) for label in ("half", "broken", "list")]
    assert found == {
        "failed": ("failed", "RuntimeError: loss is nan (last step 40 of 2000)"),
        "stopped": ("unfinished", "last step 700 of 2000"),
        "unstarted": ("unfinished", "no step was logged"),
        "retried": ("complete", ""),
        "odd": ("failed", "failed.json cannot be read; last step 2000 of 2000"),
        "pruned": ("pruned", "pruned at step 600 of 2000, val_loss 0.7123"),
    }
    assert [state for state, _ in unreadable] == ["unfinished", "unreadable", "unreadable"]
    assert all("cannot be read" in reason and "\n" not in reason for _, reason in unreadable)


def test_a_result_of_an_older_version_is_read_and_named(tmp_path):
    write_run(tmp_path / "new")
    old = json.dumps({"metrics": {"test_loss": 0.5, "note": "x"}, "seconds": 12})
    for name, text in (("old", old), ("oldest", "{}")):
        (write_run(tmp_path / name) / "result.json").write_text(text)
    runs = {run.label: run for run in collect([tmp_path])}
    assert runs["old"].state == runs["oldest"].state == "complete"
    assert runs["old"].metrics == {"test_loss": 0.5}
    assert {"parameters", "seconds.train"} <= set(runs["old"].missing)
    assert runs["new"].missing == ()
    note = missing_keys_note(list(runs.values()))
    assert note.count(".") == note.count("seconds.") + note.count("result.json") + 1  # one sentence
    for part in ("metrics", "in oldest", "in old;"):
        assert part in note
    assert missing_keys_note([runs["new"]]) == ""


def test_curves_of_a_resumed_and_killed_run(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "metrics.csv").write_text("step,a,b,c\n10,1,,x\n20,2,5,\n30,9,nan,\n20,3,6,\n30,4,inf,\n40,")
    (run,) = collect([folder])
    found = curves(run, lambda name: name != "c")
    assert found == {"a": [(10, 1), (20, 3), (30, 4)], "b": [(20, 6)]}


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "step,a\n"])
def test_a_run_without_curves(tmp_path, content):
    file = write_run(tmp_path / "run", complete=False) / "metrics.csv"
    file.unlink() if content is None else file.write_text(content)
    (run,) = collect([tmp_path])
    assert curves(run, lambda name: True) == {}
    assert run.reason == "no step was logged"


def test_evaluations_are_typed(tmp_path):
    (run,) = collect([write_run(tmp_path / "run")])
    assert evaluations(run) == []
    (run.folder / "evaluations.csv").write_text("sampler,num_steps,guidance_scale,fid\nheun,18,,2.5\n")
    assert evaluations(run) == [{"sampler": "heun", "num_steps": 18, "fid": 2.5}]


def test_debug_runs_are_read_only_if_their_folder_is_given(tmp_path):
    write_run(tmp_path / "real")
    write_run(tmp_path / "debug" / "tried")
    for folder, name in ((tmp_path, "real"), (tmp_path / "debug", "tried")):
        assert [run.folder.name for run in collect([folder])] == [name]
