"""`python train.py -m`: what a user sees of a sweep, from the command line to its folder."""

import json
import subprocess
import sys

import pytest
from cli_process import ROOT, killed, outcomes, script
from runs import TINY

from flowdiff.runs.run_folder import RunFolder

PLUGIN = '''
"""A schedule that breaks when a model is sampled (under no_grad), not when it is checked beforehand."""
import torch

from flowdiff.errors import DataError
from flowdiff.registry import create, register


@register("schedule", "broken")
class Broken:
    def __init__(self, *, sigma_min: float = 0.01, works: bool = False):
        self.sigma_min = sigma_min
        self.works = works

    def __call__(self, num_steps):
        if not self.works and not torch.is_grad_enabled():
            raise DataError("this schedule is broken: take another.")
        return create("schedule", "karras")(num_steps)
'''


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Several commands after one another; (exit status, stderr) of each, and the folder they ran in."""
    cwd = tmp_path_factory.mktemp("sweeps")
    (cwd / "plugin.py").write_text(PLUGIN)
    RunFolder(cwd / "run").write_config({})
    tiny = [*(o for o in TINY if "max_steps" not in o), "trainer.max_steps=2"]
    sweep = ["-m", *tiny, "hydra.sweep.dir=multirun/s"]
    commands = {
        "first": [*sweep, "seed=1,2"],
        "again": ["-m", "seed=1,2,3", *reversed(tiny), "hydra.sweep.dir=multirun/s", "logger=csv"],
        "senseless": [*sweep, "hydra.sweep.dir=multirun/none", "seed=1,2", "scaling=score,edm,eps"],
        "retry": [*sweep, "retry=some", "seed=1,2"],
        "resume": [*sweep, "resume=run", "seed=1,2"],
        "slots": [*sweep, "hydra.launcher.jobs_per_device=0", "force=true", "seed=1,2"],
        "broken": [*sweep, "plugins=[plugin.py]", "schedule=broken", "schedule.works=true,false", "seed=1"],
    }
    return dict(zip(commands, outcomes("train", list(commands.values()), cwd), strict=True)), cwd


def folders(cwd, schedule="karras"):
    """The run folders of the sweep that have this schedule, by seed and whether it works."""
    found = [RunFolder(path) for path in (cwd / "multirun" / "s").iterdir() if path.is_dir()]
    configs = [(folder, folder.config()) for folder in found]
    chosen = [(f, c) for f, c in configs if c["schedule"]["name"] == schedule]
    keyed = {(c["seed"], c["schedule"].get("works", True)): f for f, c in chosen}
    assert len(keyed) == len(chosen)  # no run has two folders
    return keyed


def test_a_sweep_leaves_complete_runs_and_status_0(ran):
    results, cwd = ran
    assert results["first"] == (0, "")
    for seed in (1, 2):
        folder = folders(cwd)[seed, True]
        assert folder.result()["seed"] == seed
        assert folder.result()["sweep"] == "s"
        assert "model score_flow" in (folder.path / "train.log").read_text()


def test_the_same_runs_in_other_words_are_the_same_runs(ran):
    results, cwd = ran
    assert results["again"] == (0, "")
    assert {seed for seed, _ in folders(cwd)} == {1, 2, 3}


def test_all_that_make_no_sense_are_named_and_nothing_starts(ran):
    results, cwd = ran
    status, stderr = results["senseless"]
    assert status == 2
    head, *lines = stderr.splitlines()
    assert head == "4 of 6 jobs make no sense, so none was started:"
    jobs = [f"  seed={seed} scaling={scaling}" for seed in (1, 2) for scaling in ("edm", "eps")]
    assert [line.partition(": ")[0] for line in lines] == jobs
    assert not (cwd / "multirun" / "none").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("retry", "retry=some is not allowed: take failed"),
        ("resume", "resume=run goes on with one run, and this is a sweep"),
        ("slots", "jobs_per_device=0 is not allowed"),
    ],
)
def test_bad_input_is_a_sentence(ran, name, message):
    status, stderr = ran[0][name]
    assert status == 2
    assert message in stderr
    assert "Traceback" not in stderr


def test_a_refused_force_has_deleted_nothing(ran):
    assert all(folder.is_complete for folder in folders(ran[1]).values())


def test_a_failed_run_is_a_sentence_a_file_and_an_exit_status(ran):
    results, cwd = ran
    status, stderr = results["broken"]
    assert status == 2
    assert stderr == "schedule.works=False failed: this schedule is broken: take another.\n"
    runs = folders(cwd, "broken")
    assert runs[1, True].is_complete
    assert json.loads(runs[1, False].failed_file.read_text()) == {"error": "this schedule is broken: take another."}


def test_the_launcher_is_found_without_torch():
    probe = "import sys, hydra_plugins.flowdiff; print([m for m in ('torch', 'lightning', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_ends_as_an_undisturbed_one(tmp_path):
    shared = [o for o in TINY if not o.startswith(("trainer.max_steps", "metrics.every_n_steps"))]
    command = ["-m", *shared, "trainer.max_steps=120", "metrics.every_n_steps=30", "seed=1,2,3"]
    undisturbed, disturbed = tmp_path / "a" / "s", tmp_path / "b" / "s"
    done = script("train", *command, f"hydra.sweep.dir={undisturbed}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert killed([*command, f"hydra.sweep.dir={disturbed}"], disturbed, 3, tmp_path)
    done = script("train", *command, f"hydra.sweep.dir={disturbed}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in undisturbed.glob("*/"):
        mine, theirs = RunFolder(disturbed / path.name).result(), RunFolder(path).result()
        assert numbers(mine) == numbers(theirs)
        assert mine["steps"] == theirs["steps"] == 120


def numbers(result):
    return {key: value for key, value in result["metrics"].items() if key != "samples_per_second"}
