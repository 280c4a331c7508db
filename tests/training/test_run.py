"""A run: everything is in its folder, it resumes exactly, and what goes wrong leaves nothing that looks finished."""

import json
import signal
from unittest.mock import Mock

import pytest
import torch
from runs import TINY, TINY_DIGITS, send, settings, train, without_flow
from wandb_files import offline_runs

from flowdiff import registry
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.evaluation.metrics import Metrics
from flowdiff.loggers.csv import CSVOnly
from flowdiff.runs.identity import label_of_folder, run_name
from flowdiff.runs.job import Interrupted
from flowdiff.runs.metrics_csv import MetricsCSV
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.assembly import load_parts
from flowdiff.training.divergence import Divergence
from flowdiff.training.engine import Engine

PICTURES = ("samples.png", "trajectory.png", "loss_curve.png", "denoising.png")
TABLE = {
    *("test_loss", "test_loss_se", "fd_data", "fd_data_floor", "num_samples", "num_test", "nats_per_dim"),
    *("class_accuracy", "class_accuracy_se", "class_ece", "num_classified", "interpolation_nats_per_dim"),
    *("denoising_worst", "class_means_error", "min_eigenvalue", "fokker_planck"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("outputs") / "run"
    return RunFolder(path), train(path, *TINY)


def test_the_folder_holds_everything(run):
    folder, result = run
    for name in (*PICTURES, "interpolation.png", "config.yaml", "metrics.csv", "checkpoints/last.ckpt", "result.json"):
        assert (folder.path / name).stat().st_size > 0
    assert folder.result() == json.loads(json.dumps(result))
    assert result["steps"] == 8
    assert result["parameters"] > 0
    assert set(result["metrics"]) >= TABLE
    assert result["seconds"]["train"] <= result["seconds"]["total"]
    rows = MetricsCSV(folder.metrics).rows()
    assert [int(r["step"]) for r in rows if r["train_loss"]] == list(range(8))
    assert [bool(r["val_loss"]) for r in rows].count(True) == 2
    assert [bool(r["fd_data"]) for r in rows].count(True) == 2  # one periodic, one final
    assert float(rows[-1]["test_loss"]) == result["metrics"]["test_loss"]


def check_same_table(metrics, result):
    for key in ("test_loss", "fd_data", "nats_per_dim"):
        assert metrics[key] == pytest.approx(result["metrics"][key], rel=1e-5)


def test_load_gives_the_averaged_weights_and_changes_nothing(run):
    folder, result = run
    engine = Engine(load_parts(folder.path), seed=0)
    averaged = torch.load(folder.checkpoint, weights_only=True)  # it holds plain types only
    assert averaged["global_step"] == 8
    state = engine.state_dict()
    for key, value in averaged["state_dict"].items():
        assert torch.equal(state[key], value)
    current = averaged["current_model_state"]
    assert any(not torch.equal(current[k], v) for k, v in state.items())  # the average is not the last step
    # The same weights give the same table.
    engine.measure()
    metrics = registry.create("metrics", folder.config()["metrics"], data=engine.data)

    def draw(n, seed):
        return engine.denoiser.sample(n, seed=seed, batch_size=metrics.batch_size)

    again = metrics.evaluate(engine.denoiser, draw, 0)
    check_same_table(again, result)


RESUMED = {
    "plain": [],
    "accumulated": ["trainer.accumulate_grad_batches=2"],
    "with the residual in every second step": ["loss.fokker_planck=0.1", "loss.fokker_planck_every=2"],
}


@pytest.fixture(scope="module", params=RESUMED.values(), ids=RESUMED)
def undisturbed(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed")
    train(path, *TINY, *request.param)
    return path, request.param


def curves(path):
    """The rows of metrics.csv but for the last, which holds samples per second."""
    return RunFolder(path).metrics.read_text().splitlines()[:-1]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_run_goes_on_exactly(tmp_path, undisturbed, at_step, monkeypatch, number):
    whole, extra = undisturbed
    halved = tmp_path / "halved"
    with monkeypatch.context() as patch:
        at_step(5, send(number), patch)
        with pytest.raises(Interrupted, match=r"stopped the run after step .* resume="):
            train(halved, *TINY, *extra)
    assert not RunFolder(halved).is_complete
    train(halved, *TINY, *extra)
    assert curves(halved) == curves(whole)
    one, other = (torch.load(RunFolder(p).checkpoint, weights_only=True) for p in (whole, halved))
    for kind in ("state_dict", "current_model_state"):
        for key, value in one[kind].items():
            assert torch.equal(value, other[kind][key]), key


def test_a_run_stopped_in_its_evaluation_ends_as_if_it_had_not(tmp_path, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "evaluate", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(Interrupted, match=r"stopped; continue with: python train.py resume="):
            train(tmp_path / "run", *TINY)
    result = train(tmp_path / "run", *TINY)
    check_same_table(result["metrics"], run[1])


@pytest.fixture
def told(monkeypatch):
    """What the tracker was told at the end."""
    calls = []
    monkeypatch.setattr(CSVOnly, "preempting", lambda self: calls.append("preempting"))
    monkeypatch.setattr(CSVOnly, "finish", lambda self, exit_code=0: calls.append(exit_code))
    return calls


@pytest.mark.parametrize("in_queue", [True, False])
def test_a_run_in_a_queue_says_that_it_goes_on(tmp_path, at_step, monkeypatch, told, in_queue):
    if in_queue:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    at_step(3, send(signal.SIGUSR2))
    with pytest.raises(Interrupted, match="SIGUSR2 stopped the run after step 4 of 8"):
        train(tmp_path / "run", *TINY)
    assert told == (["preempting", 1] if in_queue else [1])
    assert RunFolder(tmp_path / "run").checkpoint.is_file()


lost = Mock(side_effect=ConnectionResetError("Connection lost"))


def test_a_tracker_that_the_queue_has_ended_first_is_no_failure(tmp_path, at_step, monkeypatch):
    def both_end():
        monkeypatch.setattr(CSVOnly, "finish", lost)
        monkeypatch.setattr(MetricsCSV, "log_metrics", lost)
        send(signal.SIGTERM)()

    at_step(3, both_end)
    with pytest.raises(Interrupted, match="SIGTERM stopped the run after step 4 of 8"):
        train(tmp_path / "run", *TINY)


def test_a_tracker_that_is_lost_without_being_asked_to_stop_is_one(tmp_path, at_step):
    before = signal.getsignal(signal.SIGUSR2)
    at_step(3, lost)
    with pytest.raises(ConnectionResetError):
        train(tmp_path / "run", *TINY)
    assert signal.getsignal(signal.SIGUSR2) is before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_is_killed_before_it_is_validated_goes_on_from_before(tmp_path, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "on_validation_start", lost, raising=False)
        with pytest.raises(ConnectionResetError):
            train(tmp_path / "halved", *TINY)
    assert not RunFolder(tmp_path / "halved").checkpoint.exists()
    train(tmp_path / "halved", *TINY)
    assert curves(tmp_path / "halved") == curves(run[0].path)


def test_a_run_whose_loss_is_not_finite_stops_with_a_sentence(tmp_path, monkeypatch):
    original = Engine.training_step
    monkeypatch.setattr(Engine, "training_step", lambda *a: original(*a) * float("nan"))
    with pytest.raises(Divergence, match=r"at step 1: the loss is nan; it was finite when .* no checkpoint yet"):
        train(tmp_path / "run", *TINY)
    assert not RunFolder(tmp_path / "run").is_complete


def test_a_run_that_is_refused_after_its_config_was_written_is_continued_under_its_name(tmp_path, monkeypatch):
    def refuse(self):
        raise ConfigurationError("the cache cannot be written.")

    monkeypatch.setattr(Metrics, "check_cache", refuse)
    with pytest.raises(ConfigurationError, match="the cache cannot be written"):
        train(tmp_path / "run", *TINY)
    label = label_of_folder(RunFolder(tmp_path / "run"))
    assert (label.overrides, label.name) == (tuple(TINY), run_name(TINY))


def test_a_broken_checkpoint_is_a_sentence(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config(settings(*TINY))
    folder.checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match="cannot be read"):
        train(folder.path, *TINY)


def kind(*more, of=TINY_DIGITS, slow=True):
    """A run of another kind than the default one."""
    marks = pytest.mark.slow if slow else ()
    return pytest.param([*of, *more], id=" ".join(more) or "no flow", marks=marks)


UNET = ["network=unet", "scaling=v", "network.channels=[8,8]", "network.norm_groups=4"]


@pytest.mark.parametrize(
    "overrides",
    [
        kind(*UNET, of=without_flow(TINY_DIGITS), slow=False),
        kind("loss=nll", "whitening=isotropic", "sigma_sampler=log_uniform", "guidance=cfg", slow=False),
        kind("network.components=2", "loss=nll", slow=False),
        kind(of=without_flow(TINY_DIGITS)),
        kind("network=mlp", "scaling=edm", "network.width=16", "network.depth=1", of=without_flow(TINY_DIGITS)),
        kind("conditioner=none", "loss=hybrid", "optimizer=adam", "optimizer.ema_decay=0.0"),
        kind("loss=score_matching", "sampler=ddpm", "schedule=ddpm", "logger=tensorboard", of=TINY),
    ],
)
def test_every_kind_of_run_ends_complete(tmp_path, overrides):
    train(tmp_path / "run", *overrides)
    folder = RunFolder(tmp_path / "run")
    assert folder.is_complete
    assert all((folder.path / name).is_file() for name in PICTURES)
    is_flow = not {"network=mlp", "network=unet"} & set(overrides)
    assert (folder.path / "interpolation.png").is_file() == is_flow


@pytest.fixture
def wandb_tiny(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return [o for o in TINY if o != "logger=csv"]


def test_wandb_offline_files_hold_the_run(tmp_path, wandb_tiny):
    result = train(tmp_path / "run", *wandb_tiny, "logger.checkpoint=true", "tags=[mine]")
    (seen,) = offline_runs(tmp_path / "run")
    assert (seen.run_id, seen.name, seen.tags) == (result["run_id"], result["name"], ["mine"])
    assert seen.config["trainer"]["max_steps"] == 8
    assert {"train_loss", "val_loss", "fd_data", "samples", "trajectory", "interpolation"} <= seen.curves
    assert {"fd_data", "val_loss"} <= seen.minimised
    numbers = {**result["metrics"], "parameters": result["parameters"], "train_seconds": result["seconds"]["train"]}
    assert {key: seen.summary[key] for key in numbers} == numbers
    assert seen.summary["fd_data_min"] <= numbers["fd_data"]
    assert seen.artifacts == {f"checkpoint-{result['run_id']}": str(tmp_path / "run" / "checkpoints" / "last.ckpt")}
    assert seen.exit_code == 0


def test_a_run_that_stops_and_goes_on_is_one_run_for_wandb(tmp_path, wandb_tiny, at_step, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(5, send(signal.SIGINT), patch)
        with pytest.raises(Interrupted):
            train(tmp_path / "run", *wandb_tiny)
    train(tmp_path / "run", *wandb_tiny)
    first, second = offline_runs(tmp_path / "run")
    assert first.run_id == second.run_id
    assert [(one.resume, one.exit_code) for one in (first, second)] == [(False, 1), (True, 0)]
    assert first.artifacts == {}


def test_measure_takes_statistics_from_the_training_split():
    engine = Engine.of(settings(*TINY))
    sigma_data = engine.measure()
    x = engine.data.to_model(engine.data.train[:].x)
    assert sigma_data == pytest.approx(float(x.square().mean().sqrt()), rel=1e-5)
    assert torch.allclose(engine.denoiser.network.whitening.mean, x.mean(0), atol=1e-5)
