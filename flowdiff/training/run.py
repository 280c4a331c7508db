"""One run from its config to its finished folder: measure, train, evaluate, draw, write the result."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flowdiff.errors import ConfigurationError, DataError, InverseDidNotConverge, RunError
from flowdiff.evaluation.densities.autoencoding import autoencoder_of
from flowdiff.evaluation.metrics import Metrics
from flowdiff.evaluation.pictures import plots as pictures
from flowdiff.evaluation.pictures.drawing import (
    PICTURE_SEED,
    draw_interpolation,
    draw_latent_interpolation,
    draw_reconstructions,
    draw_samples,
    draw_trajectory,
)
from flowdiff.evaluation.ranks import local_device
from flowdiff.launch.search.pruning import pruning
from flowdiff.loggers.base import Tracker
from flowdiff.progress import counting
from flowdiff.registry import create
from flowdiff.runs.job import Interrupted, Pruned, is_first_rank
from flowdiff.runs.metrics_csv import MetricsCSV
from flowdiff.runs.provenance import git_commit, versions
from flowdiff.runs.run_folder import RunFolder
from flowdiff.shapes import times
from flowdiff.training import assembly
from flowdiff.training.checkpoint import ResumableCheckpoint
from flowdiff.training.engine import Engine
from flowdiff.training.progress_bar import TrainingBar

log = logging.getLogger(__name__)

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}  # write <run folder>/fit-profile*.txt
# Lightning's advice that does not fit: our loaders index whole batches in memory, and srun on the PATH is not a job.
# The last one is lightning 2.6 calling torch >= 2.15.
ADVICE = (
    ".*does not have many workers.*",
    ".*The `srun` command is available.*",
    ".*GPU available but not used.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*recommended to use `self.log\\('fd_.*sync_dist=True.*",  # measured on rank 0 only
)


def train(
    config: Mapping[str, Any],
    folder: RunFolder,
    *,
    name: str,
    run_id: str,
    sweep: str | None,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """Train, evaluate and leave a complete run folder; returns what result.json holds.

    config: resolved and checked. Goes on from the folder's last.ckpt when there is one. Raises Interrupted after a
    signal (the folder can be resumed), Divergence when the loss is not finite, DataError, ConfigurationError.
    """
    started = time.perf_counter()
    if not is_first_rank():
        logging.getLogger("flowdiff").setLevel(logging.WARNING)
    seed_everything(config["seed"], workers=True, verbose=False)
    engine, metrics = rehearse(config, folder)
    tracker: Tracker = create("logger", config["logger"])
    checkpoint = _resumable(folder, engine)
    folder.write_config(dict(config))

    if torch.cuda.is_available() and config["accelerator"]["kind"] != "cpu":
        engine.denoiser.first_stage.to(local_device())  # which may have a data set to encode
    engine.measure()
    if checkpoint is not None:
        engine.load_state_dict(checkpoint["state_dict"])  # what was measured at the start, before a first stage moved
    log.info(
        "data %s: %s training and %s test samples of shape %s, sigma_data %.4f (measured)",
        engine.data.name,
        f"{len(engine.data.train):,}",
        f"{len(engine.data.test):,}",
        times(engine.data.shape),
        engine.denoiser.sigma_data,
    )
    csv = MetricsCSV(folder.metrics)
    clock = Stopwatch()
    exit_code = 1
    try:
        about = _about(config, name, run_id, sweep, resumed=checkpoint is not None)
        loggers = [csv, *tracker.start(folder.path, about)]
        evaluation = PeriodicEvaluation(metrics, engine, folder, tracker)
        with _without_advice():
            trainer = make_trainer(
                config, folder, loggers, [clock, TrainingBar(), evaluation, *pruning(folder, run_id)]
            )
        log.info(
            "model %s: %s parameters, on %s", config["network"]["name"], f"{engine.num_parameters:,}", _device(trainer)
        )
        step = 0 if checkpoint is None else checkpoint["global_step"]
        csv.truncate(step - 1)  # a row is logged under the steps done before it
        if checkpoint is not None:
            if isinstance(trainer.limit_train_batches, float):  # else the stream begins anew at every epoch
                engine.latents.start_step = step * trainer.accumulate_grad_batches
            log.info("going on from step %s of %s", f"{step:,}", f"{trainer.max_steps:,}")
        engine.latents.seed = config["seed"]
        with _without_advice():
            trainer.fit(engine, ckpt_path=folder.checkpoint if checkpoint else None)
        if not trainer.is_global_zero:
            return {}
        # A run that was killed between its last step and here resumes past the end, where no weights are averaged.
        engine.load_state_dict(_checkpoint(folder)["state_dict"])
        engine.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
        steps = trainer.global_step
        numbers = _evaluate(engine, metrics, config)
        _draw(engine, metrics, config, folder, csv)
        cost = {"parameters": engine.num_parameters, "train_seconds": clock.seconds}
        csv.log_metrics({**numbers, **cost}, steps)
        result = {
            "run_id": run_id,
            "name": name,
            "sweep": sweep,
            "overrides": list(overrides),
            "seed": config["seed"],
            "metrics": numbers,
            "parameters": engine.num_parameters,
            "steps": steps,
            "seconds": {"train": clock.seconds, "total": time.perf_counter() - started},
            "device": _device(trainer),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        tracker.pictures({path.stem: path for path in folder.pictures if path.is_file()}, steps)
        tracker.summary({**numbers, **cost})
        tracker.checkpoint(folder.checkpoint)
        exit_code = 0
    except (Interrupted, SystemExit):
        with suppress(ConnectionError):  # the tracker may have been stopped before us
            if "SLURM_JOB_ID" in os.environ:  # whose task is started again
                tracker.preempting()
        raise
    except Pruned:
        exit_code = 0
        raise
    except KeyboardInterrupt:
        if not folder.checkpoint.is_file():
            raise
        raise Interrupted(f"stopped; go on with: {resume_command(folder)}") from None
    finally:
        with suppress(ConnectionError) if exit_code else nullcontext():
            tracker.finish(exit_code)
    folder.write_result(result)
    return result


def rehearse(config: Mapping[str, Any], folder: RunFolder) -> tuple[Engine, Metrics]:
    """Everything of a run that can be refused without touching data or disk; the engine and what will measure it.

    Raises ConfigurationError where components do not fit each other, the data's shape, or the machine.
    """
    parts, metrics = assembly.rehearse(config)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)  # what it announces, we announce
    with _without_advice():
        make_trainer(config, folder, [], [])
    return Engine(*parts, config["seed"]), metrics


def resume_command(folder: RunFolder) -> str:
    """What a user types to go on with a run."""
    return f"python train.py resume={folder.path}"


class Stopwatch(Callback):
    """Seconds of training, without evaluation, over all the sessions of a run."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def state_dict(self) -> dict[str, float]:
        self._stop()
        self._since = time.perf_counter()
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds = state_dict["seconds"]

    def _stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


class PeriodicEvaluation(Callback):
    """At every validation: a Fréchet distance on few samples and a sample grid, by the averaged weights.

    Must stand before the weight average in the list of callbacks, which swaps the weights back when it ends.
    """

    def __init__(self, metrics: Metrics, engine: Engine, folder: RunFolder, tracker: Tracker):
        self.metrics = metrics
        self.engine = engine
        self.folder = folder
        self.tracker = tracker

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.global_step >= trainer.max_steps:
            return  # the last step is evaluated in full after training
        n = self.metrics.periodic_num_samples
        if self.metrics.with_frechet:
            samples = self.engine.denoiser.sample(n, seed=PICTURE_SEED)
            distances = self.metrics.frechet(samples)
            self.tracker.minimise(distances)
            module.log_dict(distances, rank_zero_only=True)
        drawn = {"samples": self.folder.samples}
        draw_samples(self.engine.denoiser, self.engine.data, self.folder.samples)
        if self.engine.denoiser.is_autoencoder:
            drawn["reconstructions"] = self.folder.reconstructions
            draw_reconstructions(self.engine.denoiser, self.engine.data, self.folder.reconstructions)
        self.tracker.pictures(drawn, trainer.global_step)


def _evaluate(engine: Engine, metrics: Metrics, config: Mapping[str, Any]) -> dict[str, float]:
    denoiser = engine.denoiser.eval()
    sigma_min = create("schedule", config["schedule"]).sigma_min
    with counting("sampling for evaluation") as progress:
        return metrics.evaluate(
            denoiser,
            lambda n, seed: denoiser.sample(n, seed=seed, batch_size=metrics.batch_size, progress=progress),
            denoiser.cond_of,
            sigma_min,
            config["seed"],
        )


def _draw(engine: Engine, metrics: Metrics, config: Mapping[str, Any], folder: RunFolder, csv: MetricsCSV) -> None:
    denoiser, data = engine.denoiser, engine.data
    draw_samples(denoiser, data, folder.samples)
    pictures.loss_curve(csv.rows(), folder.loss_curve)
    if autoencoder_of(denoiser) is not None:
        draw_reconstructions(denoiser, data, folder.reconstructions)
    if denoiser.is_autoencoder:
        draw_latent_interpolation(denoiser, data, folder.interpolation)
        return
    draw_trajectory(denoiser, data, folder.trajectory)
    if metrics.wants("interpolate", denoiser):
        sigma = metrics.sigma_eval or create("schedule", config["schedule"]).sigma_min
        with suppress(InverseDidNotConverge, DataError):  # the evaluation has said why
            draw_interpolation(denoiser, data, sigma, folder.interpolation)


def make_trainer(
    config: Mapping[str, Any], folder: RunFolder, loggers: list[Any], callbacks: list[Callback]
) -> Trainer:
    """The Trainer of a run: Lightning's own arguments from `trainer` and `accelerator`, ours for what a run needs."""
    arguments = dict(config["trainer"])
    decay = config["optimizer"]["ema_decay"]
    if decay:
        average = WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
        callbacks = [*callbacks, average]
    if arguments["profiler"] in PROFILERS:  # by its name alone Lightning would make one that says it to a silent logger
        arguments["profiler"] = PROFILERS[arguments["profiler"]](folder.path, "profile")
    every = arguments["val_check_interval"]
    saving = ResumableCheckpoint(folder.checkpoint, every or arguments["max_steps"], resume_command(folder))
    if every is None:
        arguments["limit_val_batches"] = 0
        del arguments["val_check_interval"]
    elif isinstance(every, int):
        arguments["val_check_interval"] = every * arguments["accumulate_grad_batches"]  # Lightning counts batches
    try:
        return Trainer(
            **create("accelerator", config["accelerator"]).trainer_arguments,
            **arguments,
            logger=loggers,
            callbacks=[*callbacks, saving],
            default_root_dir=folder.path,
            check_val_every_n_epoch=None,  # the training stream is endless: validation counts steps
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data module gives every rank its own part
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,  # we do it ourselves
            inference_mode=False,  # a score is a gradient, also in validation
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigurationError(f"the trainer refuses this configuration: {first}.") from error


@contextmanager
def _without_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in ADVICE:
            warnings.filterwarnings("ignore", message)
        yield


def _checkpoint(folder: RunFolder) -> dict[str, Any] | None:
    if not folder.checkpoint.is_file():
        return None
    try:
        return torch.load(folder.checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RunError(
            f"{folder.checkpoint} cannot be read ({type(error).__name__}): remove it, or start anew with force=true."
        ) from error


def _resumable(folder: RunFolder, engine: Engine) -> dict[str, Any] | None:
    """The checkpoint to go on from, None when there is none; RunError for one that another version has made."""
    checkpoint = _checkpoint(folder)
    if checkpoint is None:
        return None
    try:
        missing = {"global_step", "state_dict", "callbacks", "loops", "optimizer_states"} - checkpoint.keys()
        if missing:
            raise RuntimeError(f"it has no {', '.join(sorted(missing))}")
        engine.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).replace('"', "").split()).rstrip(". ")
        raise RunError(
            f"{folder.checkpoint} does not fit the run's configuration in this version of flowdiff ({reason}): start "
            "anew with force=true, or take the version that made it."
        ) from error
    return checkpoint


def _about(config: Mapping[str, Any], name: str, run_id: str, sweep: str | None, *, resumed: bool) -> dict[str, Any]:
    about = {"run_id": run_id, "name": name, "sweep": sweep, "tags": list(config["tags"]), "config": dict(config)}
    return {**about, "resumed": resumed}


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )
