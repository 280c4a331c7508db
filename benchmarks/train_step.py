"""What a training step costs: through Lightning against a bare PyTorch loop, and score losses against likelihood.

    python benchmarks/train_step.py [overrides] [--json FILE]

Lightning and bare loop take turns in blocks of the same process, so that a machine that speeds up or slows down does so
for both; every figure is a median over steps. Peak memory is what the allocator held at most during one step.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from flowdiff.training.progress_bar import TrainingBar
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flowdiff import config
from flowdiff.noise import step_generator
from flowdiff.registry import create
from flowdiff.runs.metrics_csv import MetricsCSV
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training import run as training
from flowdiff.training.engine import Engine

BLOCKS, STEPS, WARMUP = 5, 40, 10  # 5 × 40 = 200 measured steps each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    settings = config.resolved(config.compose(given.overrides))
    settings["metrics"]["every_n_steps"] = settings["trainer"]["val_check_interval"] = 10**9
    engine = Engine.of(settings)
    engine.measure()

    bare, through = [], []
    for _ in range(BLOCKS):
        bare += bare_loop(assembled(settings))
        through += lightning_loop(assembled(settings), settings)
    results = {"lightning_ms": 1e3 * statistics.median(through), "bare_ms": 1e3 * statistics.median(bare)}
    results["lightning / bare"] = results["lightning_ms"] / results["bare_ms"]
    if engine.denoiser.is_density:
        results |= compare_losses(settings)

    table = Table(title="training step, medians", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for key, value in results.items():
        table.add_row(key, f"{value:.3f}")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


def assembled(settings: dict) -> Engine:
    torch.manual_seed(0)
    engine = Engine.of(settings)
    engine.measure()
    return engine


def bare_loop(engine: Engine) -> list[float]:
    """The same step without Lightning: batch, loss, backward, clipping, optimiser, schedule, weight average."""
    optimizer = engine.optimizer.make([p for p in engine.parameters() if p.requires_grad])
    scheduler = engine.optimizer.scheduler(optimizer, 10**6)
    average = AveragedModel(engine, multi_avg_fn=get_ema_multi_avg_fn(engine.optimizer.ema_decay))
    engine.train()
    batches = iter(engine.data.train_dataloader())
    marks = []
    for step in range(WARMUP + STEPS + 1):
        marks.append(time.perf_counter())
        batch = next(batches)
        generator = step_generator(engine.seed, step, 0)
        x0 = engine.data.to_model(batch.x, generator, train=True)
        cond = engine.conditioner(batch.label, generator)
        sigma = engine.sigma_sampler(len(x0), generator, engine.device)
        noise = engine.loss.draw_noise(x0, generator)
        loss = engine.loss(engine.denoiser.denoiser, x0, sigma, noise, cond).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(engine.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        average.update_parameters(engine)
    return differences(marks)


def lightning_loop(engine: Engine, settings: dict) -> list[float]:
    """The step as `python train.py` takes it, with its callbacks, its progress bar and metrics.csv."""
    marks = Marks()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        run.write_config({})
        settings = {**settings, "trainer": {**settings["trainer"], "max_steps": WARMUP + STEPS + 1}}
        callbacks = [marks, training.Stopwatch(), TrainingBar()]
        trainer = training.make_trainer(settings, run, [MetricsCSV(run.metrics)], callbacks)
        trainer.fit(engine)
    return differences(marks.times)


class Marks(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *arguments: object) -> None:
        self.times.append(time.perf_counter())


def differences(marks: list[float]) -> list[float]:
    return [after - before for before, after in zip(marks[WARMUP:], marks[WARMUP + 1 :], strict=False)]


def compare_losses(settings: dict) -> dict[str, float]:
    """score / log_prob, and the denoising step (double backward) / the nll step, in time and peak memory."""
    engine = assembled(settings).train()
    batch = engine.data.train[: engine.data.batch_size]
    x0 = engine.data.to_model(batch.x, step_generator(0, 0))
    sigma, noise = engine.sigma_sampler(len(x0)), torch.randn_like(x0)
    losses = {"denoising": create("loss", "denoising", weighting=create("weighting", "edm")), "nll": create("loss", "nll")}

    def step(name: str) -> None:
        engine.zero_grad()
        cond = engine.conditioner(batch.label, step_generator(0, 0))
        losses[name](engine.denoiser.denoiser, x0, sigma, noise, cond).loss.mean().backward()

    def log_prob() -> None:
        with torch.no_grad():
            engine.denoiser.log_prob(x0, sigma, engine.conditioner(batch.label, step_generator(0, 0)))

    def score() -> None:
        engine.denoiser.score(x0, sigma, engine.conditioner(batch.label, step_generator(0, 0)))

    times = interleaved({"denoising": lambda: step("denoising"), "nll": lambda: step("nll")})
    engine.eval()
    times |= interleaved({"log_prob": log_prob, "score": score})
    engine.train()
    memory = {name: peak_memory(lambda name=name: step(name)) for name in losses}
    return {
        "score / log_prob": times["score"] / times["log_prob"],
        "denoising step / nll step": times["denoising"] / times["nll"],
        "denoising peak MiB": memory["denoising"],
        "nll peak MiB": memory["nll"],
        "denoising peak / nll peak": memory["denoising"] / memory["nll"],
    }


def interleaved(functions: dict, rounds: int = 60) -> dict[str, float]:
    """Median seconds of each function, called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds + WARMUP):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if i >= WARMUP:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(function) -> float:
    """MiB that the CPU allocator held at most while the function ran, beyond what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            function()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = [(e["ts"], e["args"]["Total Allocated"]) for e in events if e.get("name") == "[memory]"]
    held.sort()
    return (max(total for _, total in held) - held[0][1]) / 2**20


if __name__ == "__main__":
    main()
