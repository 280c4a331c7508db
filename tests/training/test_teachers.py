"""Runs whose loss has a teacher: they train, are known by their teacher, and are sampled without it."""

import shutil

import pytest
import torch
from runs import TINY, settings, train, without_flow

import flowdiff
from flowdiff import config
from flowdiff.errors import RunError
from flowdiff.runs.identity import run_id
from flowdiff.runs.run_folder import RunFolder
from flowdiff.testing.inputs import perturb
from flowdiff.training.assembly import assemble_run
from flowdiff.training.engine import Engine

HEALTHLESS = ["metrics.health.denoising=false", "metrics.health.eigenvalue=false", "metrics.health.fokker_planck=false"]
QUICK = [*HEALTHLESS, "metrics.frechet=false", "conditioner.drop=0.1"]
SMALL = [*without_flow(TINY), *QUICK, "network=mlp", "network.width=16", "network.depth=1"]
CONSISTENCY = ["scaling=consistency", "sampler=consistency", "sampler.num_steps=2"]
STUDENTS = {
    "consistency_distillation": [*CONSISTENCY, "loss=consistency_distillation", "loss.scales=[1.0, 4.0]"],
    "scm": [*CONSISTENCY, "loss=scm"],
    "inverse_distillation": [*CONSISTENCY, "loss=inverse_distillation", "sampler.num_steps=1"],
    "consistency": [*CONSISTENCY, "loss=consistency", "loss.pairing=flow"],
    "denoising": ["scaling=flow_matching", "weighting=flow_matching", "loss.pairing=flow"],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of a flow with random weights, as if it were trained."""
    return untrained(tmp_path_factory.mktemp("teacher"), *TINY, *QUICK)


def untrained(path, *overrides):
    folder = RunFolder(path)
    folder.write_config(settings(*overrides))
    engine = Engine.of(folder.config())
    engine.measure()
    perturb(engine.denoiser.network, 0.2)
    torch.save({"state_dict": engine.state_dict(), "global_step": 0}, folder.checkpoint)
    return folder.path


def student(loss, run):
    """The overrides of a student, without the sampler of TINY."""
    given = [*SMALL, *STUDENTS[loss], f"loss.run={run}"]
    return [one for one in given if not one.startswith("sampler=heun")]


def test_a_student_trains_and_is_sampled_when_its_teacher_is_gone(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "teacher")
    folder = tmp_path / "student"
    result = train(folder, *student("consistency_distillation", tmp_path / "teacher"), "trainer.max_steps=4")
    shutil.rmtree(tmp_path / "teacher")
    assert run_id(RunFolder(folder).config()) == result["run_id"]
    model = flowdiff.load(folder)
    perturb(model.network, 0.3)  # four steps hardly move it from 0
    plain, guided = (
        flowdiff.sample(model, 4, label=1, **given) for given in ({}, {"guidance": "embedded", "scale": 3})
    )
    assert plain.shape == (4, 2)
    assert plain.isfinite().all()
    assert not torch.allclose(plain, guided)


@pytest.mark.parametrize("loss", STUDENTS)
def test_a_step_of_every_student_moves_its_network_and_not_its_teacher(loss, teacher):
    parts = assemble_run(settings(*student(loss, teacher)))
    engine = Engine(parts, seed=0)
    engine.measure()
    teaches = getattr(parts.loss, "flow_noise", parts.loss).teacher.model
    before = {key: value.clone() for key, value in teaches.state_dict().items()}
    output = parts.loss(engine.denoiser.denoiser, *engine.loss_inputs(engine.latents.train[:16], 0))
    output.loss.mean().backward()
    assert all(p.grad is not None for p in engine.denoiser.network.parameters())
    assert all(torch.equal(before[key], value) for key, value in teaches.state_dict().items())
    assert not any("teacher" in key for key in engine.state_dict())
    numbers = parts.loss.numbers(engine.denoiser, 16, 0)
    assert numbers.keys() == ({"teacher_distance"} if loss == "inverse_distillation" else set())


def test_the_id_is_that_of_the_teacher_wherever_its_folder_is(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "moved")
    overrides = student("consistency_distillation", teacher)
    here, there = (run_id(settings(*overrides, f"loss.run={run}")) for run in (teacher, tmp_path / "moved"))
    assert here == there
    other = RunFolder(tmp_path / "other")
    other.write_config(settings(*TINY, "seed=7"))
    assert run_id(settings(*overrides, f"loss.run={other.path}")) != here
    folder = RunFolder(tmp_path / "run")
    folder.write_config(settings(*overrides))
    again = config.of_run(folder, {"loss.run": str(tmp_path / "moved")})
    assert again["loss"]["run"] == str(tmp_path / "moved")
    assert run_id(again) == here


def test_a_run_that_is_no_teacher_is_a_sentence(tmp_path):
    with pytest.raises(RunError, match=r"loss\.run=.*nowhere cannot teach: run=.*nowhere does not exist"):
        assemble_run(settings(*student("consistency_distillation", tmp_path / "nowhere")))
