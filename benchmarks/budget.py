"""How many training steps a time affords: measured for each configuration given, one after the other.

    python benchmarks/budget.py --minutes 10 "flow=tarflow loss=nll" "flow=glow dataset.batch_size=16"

A step is a batch, loss, backward pass and optimiser step, as training takes it but for Lightning's few per cent.
Processor time of one thread is counted, so that other work on the machine changes little: two runs that share two cores
for 5 minutes have 10 each. The median of 20 steps after 3 to warm up.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from rich.console import Console
from rich.table import Table

from flowdiff import config
from flowdiff.training.engine import Engine

STEPS, WARMUP = 20, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configurations", nargs="+", help='overrides in quotes: "flow=glow loss=nll"')
    parser.add_argument("--minutes", type=float, default=10.0, help="of one core")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    table = Table(title=f"steps in {given.minutes:g} minutes of one core", title_justify="left")
    table.add_column("configuration")
    for column in ("parameters", "ms a step", "steps"):
        table.add_column(column, justify="right")
    for configuration in given.configurations:
        engine = prepared(configuration.split())
        seconds = statistics.median(step_times(engine))
        steps = f"{60 * given.minutes / seconds:,.0f}"
        table.add_row(configuration, f"{engine.num_parameters:,}", f"{1e3 * seconds:.1f}", steps)
    Console().print(table)


def prepared(overrides: list[str]) -> Engine:
    composed = config.compose(overrides)
    config.check(composed)
    engine = Engine.of(config.resolved(composed))
    engine.measure()
    return engine


def step_times(engine: Engine) -> list[float]:
    """Seconds of processor time of each step."""
    optimizer = engine.optimizer.make(list(engine.parameters()))
    batch = engine.latents.train[: engine.data.batch_size]
    times = []
    for step in range(WARMUP + STEPS):
        began = time.process_time()
        loss = engine.loss(engine.denoiser.denoiser, *engine.loss_inputs(batch, step)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - began)
    return times[WARMUP:]


if __name__ == "__main__":
    main()
