"""One run, from its config to its finished folder: prepare, fit, finish."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from flowdiff.errors import DataError, InverseDidNotConverge, RunError
from flowdiff.evaluation.pictures import plots
from flowdiff.evaluation.pictures.drawing import (
    draw_interpolation,
    draw_latent_interpolation,
    draw_reconstructions,
    draw_samples,
    draw_trajectory,
)
from flowdiff.loggers.base import StartedRun, Tracker
from flowdiff.models.conditioners.text import WordIds
from flowdiff.models.networks.base import ImageTextNetwork
from flowdiff.progress import counting
from flowdiff.registry import name_of
from flowdiff.runs.job import Interrupted, Pruned
from flowdiff.runs.metrics_csv import MetricsCSV
from flowdiff.runs.processes import is_first_rank, uses_one_process
from flowdiff.runs.provenance import git_commit, versions
from flowdiff.runs.run_folder import Label, RunFolder
from flowdiff.runs.signals import EXIT_STOPPED, handlers_restored
from flowdiff.runs.undefined import explained, written
from flowdiff.shapes import times
from flowdiff.training.assembly import RunParts, assemble_run, check_base
from flowdiff.training.averages import profiles
from flowdiff.training.callbacks import (
    PeriodicEvaluation,
    Stopwatch,
    ThreadAdaptation,
    TrackedAverages,
    TrainingBar,
)
from flowdiff.training.engine import Engine
from flowdiff.training.threads import Threads, threads_for
from flowdiff.training.trainer import device_name, lightning_errors, make_trainer, resume_command, without_advice

log = logging.getLogger(__name__)

MoreCallbacks = Callable[[RunFolder, str], Sequence[Callback]]
"""(run folder, run id) → further callbacks, such as a search's pruning."""


@dataclass(frozen=True)
class Prepared:
    """A run whose data are measured.

    Args:
        parts: its parts.
        engine: what Lightning trains.
        folder: its folder.
        checkpoint: what it resumes from, or None.
        csv: its curves.
        earlier: files of an earlier attempt, which are removed when this one starts from scratch.
        threads: chooses the number of CPU threads, or None.
    """

    parts: RunParts
    engine: Engine
    folder: RunFolder
    checkpoint: dict[str, Any] | None
    csv: MetricsCSV
    earlier: Sequence[Path] = ()
    threads: Threads | None = None

    @property
    def step(self) -> int:
        """Optimiser steps that are already done."""
        return 0 if self.checkpoint is None else self.checkpoint["global_step"]


def train(
    config: Mapping[str, Any],
    folder: RunFolder,
    *,
    name: str,
    run_id: str,
    sweep: str | None,
    overrides: Sequence[str],
    more_callbacks: MoreCallbacks = lambda folder, run_id: (),
) -> dict[str, Any]:
    """Train, evaluate and leave a complete run folder; a run with a last.ckpt continues from it.

    Args:
        config: resolved and checked.
        folder: the run folder.
        name: the run's readable name.
        run_id: the run's identity.
        sweep: name of its sweep, or None.
        overrides: the overrides that describe it.
        more_callbacks: (run folder, run id) → further callbacks of the training.

    Returns:
        What result.json holds; {} on ranks other than 0.

    Raises:
        Interrupted: a signal stopped the run, which can be resumed.
        Divergence: the loss, a gradient or a weight is not finite.
        ConfigurationError, DataError, RunError: the config, the data or the folder does not work.
    """
    started = time.perf_counter()
    if not is_first_rank():
        logging.getLogger("flowdiff").setLevel(logging.WARNING)
    label = Label(run_id, name, sweep, tuple(overrides))
    run = prepare(config, folder, label)
    with _tracked(run, config, label) as loggers:
        _begin(run, config, label)
        clock = Stopwatch()
        callbacks: list[Callback] = [clock, TrainingBar(), PeriodicEvaluation(run.parts, folder, run.parts.tracker)]
        if tracked := profiles(run.parts.optimizer.ema):
            every = max(1, config["trainer"]["max_steps"] // run.parts.optimizer.ema.snapshots)
            callbacks.append(TrackedAverages(tracked, folder.averages, every))
        trainer = fit(run, loggers, [*callbacks, *more_callbacks(folder, run_id)])
        if not trainer.is_global_zero:
            return {}
        result = finish(run, trainer, label, clock.seconds, started)
    folder.write_result(result)
    return result


def check_trainer(config: Mapping[str, Any], folder: RunFolder) -> tuple[RunParts, torch.device]:
    """Build all parts of a run and its Trainer, without touching data or disk: the parts, and this process's device.

    Raises:
        ConfigurationError: components do not fit each other, the shape of the data, or the machine.
    """
    parts = assemble_run(config)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)  # flowdiff says these things itself
    with without_advice():
        trainer = make_trainer(parts, folder, [], [])
    return parts, trainer.strategy.root_device


def prepare(config: Mapping[str, Any], folder: RunFolder, label: Label) -> Prepared:
    """Build the parts, measure the data, and read the checkpoint of a run that continues.

    The files of an earlier attempt stay as they are: what refuses this one must not cost its results.
    """
    seed_everything(config["seed"], workers=True, verbose=False)
    parts, device = check_trainer(config, folder)
    engine = Engine(parts, parts.seed)
    earlier = folder.files_of_run(label.run_id)
    checkpoint = None if folder.starts_from_scratch else _resumable(folder, engine)
    if is_first_rank() and not folder.config_file.is_file():
        folder.write_label(label)  # before the config: a run that is refused from here on can be continued by its name
        folder.write_config(dict(config))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Lightning does so when it trains; features are computed there too
        parts.denoiser.first_stage.to(device)  # it may have a data set to encode
        parts.denoiser.conditioner.to(device)  # it may have captions to encode
    engine.measure()
    parts.metrics.check_cache()
    parts.metrics.tell_what_is_left_out()
    if checkpoint is not None:
        engine.load_state_dict(checkpoint["state_dict"])  # the first session's measurements, before a first stage moved
    log.info(
        "data %s: %s training and %s test samples of shape %s, sigma_data %.4f (measured)",
        parts.data.name,
        f"{len(parts.data.train):,}",
        f"{len(parts.data.test):,}",
        times(parts.data.shape),
        parts.denoiser.sigma_data,
    )
    threads = _choose_threads(engine) if device.type == "cpu" and uses_one_process(config) else None
    return Prepared(parts, engine, folder, checkpoint, MetricsCSV(folder.metrics), earlier, threads)


def fit(run: Prepared, loggers: Sequence[Any], callbacks: Sequence[Callback]) -> Trainer:
    """Train to the last step; the averaged weights are then in the engine."""
    engine, folder, checkpoint = run.engine, run.folder, run.checkpoint
    with without_advice():
        adapt = [] if run.threads is None else [ThreadAdaptation(run.threads)]
        trainer = make_trainer(run.parts, folder, loggers, [*callbacks, *adapt])
    network = name_of("network", run.parts.denoiser.network)
    log.info("model %s: %s parameters, on %s", network, f"{engine.num_parameters:,}", device_name(trainer, run.threads))
    if is_first_rank():
        run.csv.truncate(run.step - 1)  # a row is logged under the number of steps done before it
    if checkpoint is not None:
        if isinstance(trainer.limit_train_batches, float):  # else the stream starts again in every epoch
            engine.latents.start_step = run.step * trainer.accumulate_grad_batches
        log.info("continuing from step %s of %s", f"{run.step:,}", f"{trainer.max_steps:,}")
    engine.latents.seed = run.parts.seed
    try:
        with without_advice(), handlers_restored(), lightning_errors(trainer):
            trainer.fit(engine, ckpt_path=folder.checkpoint if checkpoint else None)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning's way to end after Ctrl-C
            raise KeyboardInterrupt from None
        raise
    if trainer.is_global_zero:
        # A run that was killed after its last step resumes past the end, where Lightning averages no weights.
        last = _checkpoint(folder)
        assert last is not None  # the callback has saved the last step
        engine.load_state_dict(last["state_dict"])
        engine.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
    return trainer


def finish(run: Prepared, trainer: Trainer, label: Label, train_seconds: float, started: float) -> dict[str, Any]:
    """Evaluate, draw the pictures, and hand both to the logger; what result.json is to hold."""
    parts, engine, folder = run.parts, run.engine, run.folder
    health = parts.metrics.health(parts.denoiser)
    numbers = _evaluate(parts) | health.numbers()
    _draw(run)
    network, conditioner = parts.denoiser.network, parts.denoiser.conditioner
    if isinstance(network, ImageTextNetwork) and isinstance(conditioner, WordIds):
        network.save(folder.clip, conditioner.fitted(), conditioner.max_length)
    if not health.is_empty:
        folder.write_health(health)
        plots.health(health, folder.denoising)
    cost = {"parameters": engine.num_parameters, "train_seconds": train_seconds}
    run.csv.log_metrics({**numbers, **cost}, trainer.global_step)
    tracker = parts.tracker
    tracker.pictures({path.stem: path for path in folder.pictures if path.is_file()}, trainer.global_step)
    tracker.summary({**written(numbers), **cost})
    tracker.checkpoint(folder.checkpoint)
    return {
        "run_id": label.run_id,
        "name": label.name,
        "sweep": label.sweep,
        "overrides": list(label.overrides),
        "seed": parts.seed,
        "metrics": explained(numbers),
        "parameters": engine.num_parameters,
        "steps": trainer.global_step,
        "seconds": {"train": train_seconds, "total": time.perf_counter() - started},
        "device": device_name(trainer, run.threads),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _choose_threads(engine: Engine) -> Threads | None:
    """The number of threads for the loss of a model on the CPU; None where it stays as it is."""
    train = engine.latents.train

    def compute(n: int) -> object:
        inputs = engine.loss_inputs(train[torch.arange(n)], 0)
        return engine.loss.at(0)(engine.denoiser.denoiser, *inputs)

    engine.eval()  # so that nothing in the model is initialised by this batch
    with torch.no_grad():
        threads = threads_for(compute, min(engine.data.batch_size, len(train)))
    engine.train()
    return threads


def _begin(run: Prepared, config: Mapping[str, Any], label: Label) -> None:
    """Remove what an earlier attempt has left, and write how this run is configured and called."""
    if is_first_rank():
        run.folder.begin(run.earlier)
        run.folder.write_label(label)
        run.folder.write_config(dict(config))


@contextmanager
def _tracked(run: Prepared, config: Mapping[str, Any], label: Label) -> Iterator[list[Any]]:
    """The loggers of a run inside the `with`; afterwards its tracker is closed, also after an error."""
    tracker: Tracker = run.parts.tracker
    about: StartedRun = {
        "run_id": label.run_id,
        "name": label.name,
        "sweep": label.sweep,
        "tags": list(config["tags"]),
        "config": dict(config),
        "resumed": run.checkpoint is not None,
    }
    exit_code = 1
    try:
        yield [run.csv, *tracker.start(run.folder.path, about)]
        exit_code = 0
    except (Interrupted, SystemExit) as end:
        with suppress(ConnectionError):  # the tracker may have been stopped before us
            if "SLURM_JOB_ID" in os.environ:  # SLURM starts the task again
                tracker.preempting()
        if isinstance(end, SystemExit) and end.code == EXIT_STOPPED and run.folder.continues:
            raise Interrupted(f"stopped; continue with: {resume_command(run.folder)}", signal.SIGTERM) from None
        raise
    except Pruned:
        exit_code = 0
        raise
    except KeyboardInterrupt:
        if not run.folder.continues:
            raise
        raise Interrupted(f"stopped; continue with: {resume_command(run.folder)}") from None
    finally:
        with suppress(ConnectionError) if exit_code else nullcontext():
            tracker.finish(exit_code)


def _evaluate(parts: RunParts) -> dict[str, float]:
    model, metrics = parts.denoiser.eval(), parts.metrics
    with counting("sampling for evaluation") as progress:
        numbers = metrics.evaluate(
            model,
            lambda n, seed: model.sample(n, seed=seed, batch_size=metrics.batch_size, progress=progress),
            parts.seed,
        )
    return numbers | parts.loss.numbers(model, metrics.batch_size, parts.seed)


def _draw(run: Prepared) -> None:
    model, data, folder, metrics = run.parts.denoiser, run.parts.data, run.folder, run.parts.metrics
    plots.loss_curve(run.csv.rows(), folder.loss_curve)
    if not model.can_sample:
        return
    draw_samples(model, data, folder.samples, metrics.batch_size)
    if model.autoencoder is not None:
        draw_reconstructions(model, data, folder.reconstructions, metrics.batch_size)
    if model.is_autoencoder:
        draw_latent_interpolation(model, data, folder.interpolation)
        return
    draw_trajectory(model, data, folder.trajectory)
    if metrics.wants("interpolate", model):
        with suppress(InverseDidNotConverge, DataError):  # the evaluation has logged why
            draw_interpolation(model, data, metrics.sigma_of(model), folder.interpolation, metrics.batch_size)


def _checkpoint(folder: RunFolder) -> dict[str, Any] | None:
    if not folder.checkpoint.is_file():
        return None
    try:
        return torch.load(folder.checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RunError(
            f"{folder.checkpoint} cannot be read ({type(error).__name__}): remove it, or start from scratch with "
            "force=true."
        ) from error


def _resumable(folder: RunFolder, engine: Engine) -> dict[str, Any] | None:
    """The checkpoint to continue from, or None; RunError for one that does not fit this version."""
    checkpoint = _checkpoint(folder)
    if checkpoint is None:
        return None
    try:
        missing = {"global_step", "state_dict", "callbacks", "loops", "optimizer_states"} - checkpoint.keys()
        if missing:
            raise RuntimeError(f"it has no {', '.join(sorted(missing))}")
        check_base(engine.base, checkpoint.get("adapter_base"), folder)
        engine.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).replace('"', "").split()).rstrip(". ")
        raise RunError(
            f"{folder.checkpoint} does not fit the run's configuration in this version of flowdiff ({reason}): start "
            "from scratch with force=true, or use the version that made it."
        ) from error
    return checkpoint
