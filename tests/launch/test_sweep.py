"""`python train.py -m`: what a user sees of a sweep, from the command line to its folder."""

import json

import pytest
from cli_process import check_interrupted_sweep, code, numbers, outcomes
from runs import ANY_STEPS, TINY, settings

from flowdiff.runs.run_folder import RunFolder

PLUGIN = '''
"""A schedule that breaks when a model is sampled (under no_grad), not when it is checked beforehand."""
import torch

from flowdiff.diffusion.schedules.formulas import Karras
from flowdiff.errors import DataError
from flowdiff.registry import register


@register("schedule", "broken")
class Broken(Karras):
    def __init__(self, *, sigma_min: float = 0.01, works: bool = False):
        super().__init__(sigma_min=sigma_min, sigma_max=80.0, rho=7.0)
        self.works = works

    def _levels(self, num_steps, sigma_max):
        if not self.works and not torch.is_grad_enabled():
            raise DataError("this schedule is broken: take another.")
        return super()._levels(num_steps, sigma_max)
'''


def folders(sweep, schedule="karras"):
    """The run folders of the sweep that have this schedule, by seed and whether it works."""
    found = [(folder, folder.config()) for folder in map(RunFolder, sweep.iterdir()) if folder.path.is_dir()]
    chosen = [(f, c) for f, c in found if c["schedule"]["name"] == schedule]
    keyed = {(c["seed"], c["schedule"].get("works", True)): f for f, c in chosen}
    assert len(keyed) == len(chosen)  # no run has two folders
    return keyed


def test_sweeps_one_after_the_other_in_one_folder(tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    RunFolder(tmp_path / "run").write_config(settings(*TINY))
    tiny = [*(o for o in TINY if "max_steps" not in o), "trainer.max_steps=2"]
    sweep = ["-m", *tiny, "hydra.sweep.dir=multirun/s"]
    senseless = ["4 of 6 jobs make no sense, so none was started:"]
    senseless += [f"  seed={seed} scaling={scaling}: " for seed in (1, 2) for scaling in ("edm", "eps")]
    resumed = ["2 of 2 jobs make no sense, so none was started:", "  seed=1: resume=run", "  seed=2: resume=run"]
    no_slots = "hydra.launcher.jobs_per_device=0 is not allowed"
    failed = "schedule.works=False failed: this schedule is broken: take another."
    expected = [  # a command, and what the lines on stderr begin with
        ([*sweep, "seed=1,2"], []),
        (["-m", "seed=1,2,3", *reversed(tiny), "hydra.sweep.dir=multirun/s", "logger=csv"], []),
        ([*sweep, "hydra.sweep.dir=multirun/none", "seed=1,2", "scaling=score,edm,eps"], senseless),
        ([*sweep, "retry=some", "seed=1,2"], ["retry=some is not allowed: set it to failed"]),
        ([*sweep, "resume=run", "seed=1,2"], resumed),
        ([*sweep, "hydra.launcher.jobs_per_device=0", "force=true", "seed=1,2"], [no_slots]),
        ([*sweep, "plugins=[plugin.py]", "schedule=broken", "schedule.works=true,false", "seed=1"], [failed]),
    ]
    found = outcomes("train", [command for command, _ in expected], tmp_path)
    for (status, stderr), (_, begins) in zip(found, expected, strict=True):
        assert (status, len(stderr.splitlines())) == (2 if begins else 0, len(begins)), stderr
        assert all(map(str.startswith, stderr.splitlines(), begins)), stderr
    assert not (tmp_path / "multirun" / "none").exists()
    complete = folders(tmp_path / "multirun" / "s")
    assert complete.keys() == {(1, True), (2, True), (3, True)}
    for (seed, _), folder in complete.items():  # a refused force=true has deleted nothing, and nothing ran twice
        assert (folder.result()["seed"], folder.result()["sweep"]) == (seed, "s")
        assert (folder.path / "train.log").read_text().count("model score_flow") == 1
    runs = folders(tmp_path / "multirun" / "s", "broken")
    assert runs[1, True].is_complete
    assert json.loads(runs[1, False].failed_file.read_text()) == {"error": failed.partition("failed: ")[2]}


def test_the_launcher_is_found_without_torch():
    probe = "import sys, hydra_plugins.flowdiff; print([m for m in ('torch', 'lightning', 'rich') if m in sys.modules])"
    assert code(probe).communicate()[0] == "[]\n"


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_ends_like_an_undisturbed_one(tmp_path):
    command = ["-m", *ANY_STEPS, "trainer.max_steps=120", "metrics.every_n_steps=30", "seed=1,2,3"]
    undisturbed, killed = check_interrupted_sweep(command, 3, tmp_path)
    for path in undisturbed.glob("*/"):
        assert numbers(RunFolder(killed / path.name)) == numbers(RunFolder(path))
        assert RunFolder(killed / path.name).result()["steps"] == RunFolder(path).result()["steps"] == 120
