import json
import os
import shutil

import pytest
from fake_runs import write_run

from flowdiff.errors import RunError
from flowdiff.runs.collect import collect, curves, evaluations, is_housekeeping, older, swept_parameters


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


def test_a_run_folder_may_be_given_itself(tmp_path):
    (run,) = collect([write_run(tmp_path / "n_flows=3")])
    assert (run.label, run.state, run.seed) == ("n_flows=3", "complete", 0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist: give"),
        (lambda path: path.write_text(""), "is a file: give"),
        (lambda path: path.mkdir(), "contains no run: a run folder is one that holds config.yaml"),
    ],
)
def test_a_folder_without_runs_is_a_sentence(tmp_path, make, sentence):
    make(tmp_path / "x")
    write_run(tmp_path / "good")
    with pytest.raises(RunError, match=sentence) as caught:
        collect([tmp_path / "good", tmp_path / "x"])
    assert "\n" not in str(caught.value)


def test_no_folder_at_all_is_a_sentence():
    with pytest.raises(RunError, match="no folder was given"):
        collect([])


def test_swept_parameters_leave_out_seeds_and_housekeeping(tmp_path):
    for i in range(3):
        write_run(
            tmp_path / f"{i}",
            seed=i,
            flow={"n_flows": i + 1, "channels": [8 * i, 8]},
            dataset={"seed": i, "num_workers": i, "root": f"/data/{i}"},
            sampler={"seed": 7 + (i == 0)},
            trainer={"devices": i, "max_steps": 100 * i},
            logger={"mode": f"{i}"},
            accelerator={"name": f"a{i}"},
        )
    # A seed of its own is a setting; one that follows `seed` is not.
    assert set(swept_parameters(collect([tmp_path]))) == {
        "flow.n_flows",
        "flow.channels",
        "sampler.seed",
        "trainer.max_steps",
    }


def test_keys_that_follow_from_a_name_are_no_columns_unless_set_by_hand(tmp_path):
    write_run(tmp_path / "flow", network={"name": "score_flow", "eps": 1.0})
    write_run(tmp_path / "unet", network={"name": "unet", "channels": 32, "attention": {"heads": 4}})
    assert swept_parameters(collect([tmp_path])) == ["network.name"]
    write_run(tmp_path / "unet2", network={"name": "unet", "channels": 64, "attention": {"heads": 4}})
    assert swept_parameters(collect([tmp_path])) == ["network.name", "network.channels"]
    by_hand = {"overrides": ["network=unet", "+network.attention.heads=4"]}
    write_run(tmp_path / "unet3", result=by_hand, network={"name": "unet", "channels": 64, "attention": {"heads": 4}})
    assert "network.attention.heads" in swept_parameters(collect([tmp_path]))


def test_equal_numbers_are_equal_settings(tmp_path):
    write_run(tmp_path / "int", guidance={"scale": 1, "flag": True})
    write_run(tmp_path / "float", guidance={"scale": 1.0, "flag": True})
    assert swept_parameters(collect([tmp_path])) == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("paths.output_dir", True),
        ("logger.mode", True),
        ("trainer.devices", True),
        ("trainer.max_steps", False),
        ("flow.n_flows", False),
        ("dataset.num_workers", True),
        ("dataset.batch_size", False),
        ("tags", True),
    ],
)
def test_housekeeping(key, expected):
    assert is_housekeeping(key) is expected


def test_failed_and_unfinished_runs_say_why(tmp_path):
    error = "Traceback (most recent call last):\n  File x\nRuntimeError: loss is nan"
    write_run(tmp_path / "failed", complete=False, error=error, steps=40, rows=4)
    write_run(tmp_path / "retried", error="it failed before")
    write_run(tmp_path / "stopped", complete=False, steps=700)
    (write_run(tmp_path / "unstarted", complete=False) / "metrics.csv").unlink()
    (write_run(tmp_path / "half") / "result.json").write_text('{"metr')
    (write_run(tmp_path / "broken") / "config.yaml").write_text("a: [1")
    (write_run(tmp_path / "list") / "config.yaml").write_text("- 1")
    (write_run(tmp_path / "odd", complete=False) / "failed.json").write_text("[]")
    found = {run.label: (run.state, run.reason) for run in collect([tmp_path])}
    assert found.pop("failed") == ("failed", "RuntimeError: loss is nan (last step 40 of 2000)")
    assert found.pop("stopped") == ("unfinished", "last step 700 of 2000")
    assert found.pop("unstarted") == ("unfinished", "no step was logged")
    assert found.pop("retried") == ("complete", "")
    assert found.pop("odd") == ("failed", "failed.json cannot be read; last step 2000 of 2000")
    assert {label: state for label, (state, _) in found.items()} == {
        "half": "unfinished",
        "broken": "unreadable",
        "list": "unreadable",
    }
    assert all("cannot be read" in reason and "\n" not in reason for _, reason in found.values())


def test_a_result_of_an_older_version_is_read_and_named(tmp_path):
    write_run(tmp_path / "new")
    folder = write_run(tmp_path / "old")
    (folder / "result.json").write_text(json.dumps({"metrics": {"test_loss": 0.5, "note": "x"}, "seconds": 12}))
    (write_run(tmp_path / "oldest") / "result.json").write_text("{}")
    runs = {run.label: run for run in collect([tmp_path])}
    assert runs["old"].state == runs["oldest"].state == "complete"
    assert runs["old"].metrics == {"test_loss": 0.5}
    assert "parameters" in runs["old"].missing
    assert "seconds.train" in runs["old"].missing
    assert runs["new"].missing == ()
    sentence = older(list(runs.values()))
    assert sentence.count(".") == sentence.count("seconds.") + sentence.count("result.json") + 1  # one sentence
    assert "metrics" in sentence
    assert "in oldest" in sentence
    assert "in old;" in sentence
    assert older([runs["new"]]) == ""


def test_curves_of_a_resumed_and_killed_run(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "metrics.csv").write_text("step,a,b,c\n10,1,,x\n20,2,5,\n30,9,nan,\n20,3,6,\n30,4,inf,\n40,")
    (run,) = collect([folder])
    found = curves(run, lambda name: name != "c")
    assert found == {"a": [(10, 1), (20, 3), (30, 4)], "b": [(20, 6)]}


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "step,a\n"])
def test_curves_that_are_not_there(tmp_path, content):
    folder = write_run(tmp_path / "run", complete=False)
    (folder / "metrics.csv").unlink()
    if content is not None:
        (folder / "metrics.csv").write_text(content)
    (run,) = collect([folder])
    assert curves(run, lambda name: True) == {}
    assert run.reason == "no step was logged"


def test_evaluations_are_typed(tmp_path):
    folder = write_run(tmp_path / "run")
    assert evaluations(collect([folder])[0]) == []
    (folder / "evaluations.csv").write_text("sampler,num_steps,guidance_scale,fid\nheun,18,,2.5\n")
    assert evaluations(collect([folder])[0]) == [{"sampler": "heun", "num_steps": 18, "fid": 2.5}]


def test_a_pruned_run_says_at_which_step(tmp_path):
    folder = write_run(tmp_path / "pruned", complete=False, steps=700)
    (folder / "pruned.json").write_text('{"step": 600, "metric": "val_loss", "value": 0.71234, "study": "1a2b3c4d"}')
    (run,) = collect([tmp_path])
    assert (run.state, run.reason) == ("pruned", "pruned at step 600 of 2000, val_loss 0.7123")


def test_debug_runs_are_read_only_when_asked_for(tmp_path):
    write_run(tmp_path / "outputs" / "real")
    write_run(tmp_path / "outputs" / "debug" / "tried")
    assert [run.folder.name for run in collect([tmp_path / "outputs"])] == ["real"]
    assert [run.folder.name for run in collect([tmp_path / "outputs" / "debug"])] == ["tried"]
