"""The cost of a training step: with Lightning and in a bare PyTorch loop, by a score loss and by likelihood.

    python benchmarks/train_step.py [overrides] [--json FILE]

The two loops take turns in one process, so that a machine that speeds up or slows down does so for both. Times are
medians over steps. Peak memory is the most that the allocator holds during one step, less what it holds before.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from measuring import median_seconds, peak_memory
from rich.console import Console
from rich.table import Table
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flowdiff import config
from flowdiff.noise import step_generator
from flowdiff.registry import create
from flowdiff.runs.metrics_csv import MetricsCSV
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.assembly import RunParts, assemble_run
from flowdiff.training.callbacks import Stopwatch, TrainingBar
from flowdiff.training.engine import Engine
from flowdiff.training.trainer import make_trainer

BLOCKS, STEPS, WARMUP = 5, 40, 10  # each loop runs 5 times: 5 · 40 = 200 measured steps
ROUNDS = 60  # measured calls of each loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    composed = config.compose(given.overrides)
    config.check(composed)
    settings = config.resolved(composed)
    settings["metrics"]["every_n_steps"] = settings["trainer"]["val_check_interval"] = 10**9
    settings["trainer"]["max_steps"] = WARMUP + STEPS + 1

    bare, lightning = [], []
    for _ in range(BLOCKS):
        bare += bare_loop(assembled(settings)[1])
        lightning += lightning_loop(*assembled(settings))
    results = {"lightning_ms": 1e3 * statistics.median(lightning), "bare_ms": 1e3 * statistics.median(bare)}
    results["lightning / bare"] = results["lightning_ms"] / results["bare_ms"]
    engine = assembled(settings)[1]
    if engine.denoiser.is_density:
        results |= compare_losses(engine)

    table = Table(title="training step, medians", title_justify="left")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    for key, value in results.items():
        table.add_row(key, f"{value:.3f}")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


def assembled(settings: Mapping[str, Any]) -> tuple[RunParts, Engine]:
    torch.manual_seed(0)
    parts = assemble_run(settings)
    engine = Engine(parts, parts.seed)
    engine.measure()
    return parts, engine


def bare_loop(engine: Engine) -> list[float]:
    """Seconds of each step without Lightning: batch, loss, backward, clipping, optimiser, schedule, weight average."""
    optimizer = engine.optimizer.make([p for p in engine.parameters() if p.requires_grad])
    scheduler = engine.optimizer.scheduler(optimizer, 10**6)
    average = AveragedModel(engine, multi_avg_fn=get_ema_multi_avg_fn(engine.optimizer.ema_decay))
    engine.train()
    batches = iter(engine.latents.train_dataloader())
    starts = []
    for step in range(WARMUP + STEPS + 1):
        starts.append(time.perf_counter())
        inputs = engine.loss_inputs(next(batches), step)
        loss = engine.loss(engine.denoiser.denoiser, *inputs).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(engine.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        average.update_parameters(engine)
    return step_seconds(starts)


def lightning_loop(parts: RunParts, engine: Engine) -> list[float]:
    """Seconds of each step in `python train.py`, with its callbacks, its progress bar and metrics.csv."""
    clock = StepStarts()
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(path)
        folder.write_config({})
        trainer = make_trainer(parts, folder, [MetricsCSV(folder.metrics)], [clock, Stopwatch(), TrainingBar()])
        trainer.fit(engine)
    return step_seconds(clock.starts)


class StepStarts(Callback):
    """The time at which each training step starts."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *arguments: object) -> None:
        self.starts.append(time.perf_counter())


def step_seconds(starts: list[float]) -> list[float]:
    """Seconds from each measured step's start to the next one's."""
    return [after - before for before, after in zip(starts[WARMUP:], starts[WARMUP + 1 :], strict=False)]


def compare_losses(engine: Engine) -> dict[str, float]:
    """score / log_prob, and the denoising step (double backward) / the nll step, in time and peak memory."""
    engine.train()
    batch = engine.data.train[: engine.data.batch_size]
    x0 = engine.data.to_model(batch.x, step_generator(0, 0))
    sigma, noise = engine.sigma_sampler(len(x0)), torch.randn_like(x0)
    losses = {
        "denoising": create("loss", "denoising", weighting=create("weighting", "edm")),
        "nll": create("loss", "nll"),
    }

    def step(name: str) -> None:
        engine.zero_grad()
        cond = engine.conditioner(batch.label, step_generator(0, 0))
        losses[name](engine.denoiser.denoiser, x0, sigma, noise, cond).loss.mean().backward()

    def log_prob() -> None:
        with torch.no_grad():
            engine.denoiser.log_prob(x0, sigma, engine.conditioner(batch.label, step_generator(0, 0)))

    def score() -> None:
        engine.denoiser.score(x0, sigma, engine.conditioner(batch.label, step_generator(0, 0)))

    steps = {name: lambda name=name: step(name) for name in losses}
    seconds = median_seconds(steps, rounds=ROUNDS, warmup=WARMUP)
    engine.eval()
    seconds |= median_seconds({"log_prob": log_prob, "score": score}, rounds=ROUNDS, warmup=WARMUP)
    engine.train()
    memory = {name: peak_memory(call) for name, call in steps.items()}
    return {
        "score / log_prob": seconds["score"] / seconds["log_prob"],
        "denoising step / nll step": seconds["denoising"] / seconds["nll"],
        "denoising peak MiB": memory["denoising"],
        "nll peak MiB": memory["nll"],
        "denoising peak / nll peak": memory["denoising"] / memory["nll"],
    }


if __name__ == "__main__":
    main()
