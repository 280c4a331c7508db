"""How many training steps fit into a given time, measured for each configuration in turn.

    python benchmarks/budget.py --minutes 10 "flow=tarflow loss=nll" "flow=glow dataset.batch_size=16"

One step is a batch, the loss, its backward pass and the optimiser's step. `python train.py` adds a few per cent for
Lightning. What a network measures of the data before training, such as the mixtures of network.components, is taken
from the given time. The clock counts processor time of one thread, so other work on the machine changes little: two
runs that share two cores for 5 minutes have 10 minutes of processor time together. A step's time is the median of 20
steps, after 3 steps that are not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from rich.console import Console
from rich.table import Table

import flowdiff
from flowdiff.training.engine import Engine

STEPS, WARMUP = 20, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configurations", nargs="+", help='overrides in quotes: "flow=glow loss=nll"')
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of one core")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    table = Table(title=f"training steps in {given.minutes:g} minutes of one core", title_justify="left")
    table.add_column("configuration")
    for column in ("parameters", "seconds before training", "ms per step", "steps"):
        table.add_column(column, justify="right")
    for configuration in given.configurations:
        engine = flowdiff.build(*configuration.split())
        engine.measure()  # the first time it may encode the data, which every run then finds in the cache
        began = time.process_time()
        engine.measure()
        before = time.process_time() - began
        seconds = statistics.median(step_seconds(engine))
        steps = f"{(60 * given.minutes - before) / seconds:,.0f}"
        table.add_row(configuration, f"{engine.num_parameters:,}", f"{before:.1f}", f"{1e3 * seconds:.1f}", steps)
    Console().print(table)


def step_seconds(engine: Engine) -> list[float]:
    """Seconds of processor time of each measured step."""
    optimizer = engine.optimizer.make(list(engine.parameters()))
    batch = engine.latents.train[: engine.data.batch_size]
    seconds = []
    for step in range(WARMUP + STEPS):
        began = time.process_time()
        loss = engine.loss(engine.denoiser.denoiser, *engine.loss_inputs(batch, step)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - began)
    return seconds[WARMUP:]


if __name__ == "__main__":
    main()
