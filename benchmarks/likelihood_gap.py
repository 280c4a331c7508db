"""How far a density is from one diffusion: its exact likelihood and that of its probability-flow ODE, sample by sample.

    python benchmarks/likelihood_gap.py outputs/<run> … [--n 500] [--rtol 1e-4]

Both are of the same n test samples at the run's own noise level of the likelihood, with the same dequantisation, in
bits per dimension, or nats where the data have no levels. The gap of a sample is ODE − exact; it is 0 for the densities
of noised data. Its median stands beside its mean, because a few samples can decide the mean. Random signs (Hutchinson)
estimate the trace, which adds noise and no bias. A run whose solver gives up has no number.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from flowdiff import config, registry
from flowdiff.data.encoded import in_model_space
from flowdiff.evaluation.densities.likelihood import mean_and_error, per_dimension
from flowdiff.evaluation.densities.ode_likelihood import Solution, ode_log_prob
from flowdiff.noise import generators
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.assembly import load_parts

BATCH = 100


class Gap(NamedTuple):
    """What was measured of a run: values (n,) of the samples in `unit`, and the seconds of processor time."""

    unit: str
    exact: Tensor
    ode: Tensor
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs of densities")
    parser.add_argument("--n", type=int, default=500, help="test samples")
    parser.add_argument("--rtol", type=float, default=1e-4, help="relative and absolute tolerance of the solver")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    table = Table(title=f"{given.n} test samples, mean ± standard error", title_justify="left", box=box.SIMPLE)
    for column in ("run", "unit", "exact", "ODE", "gap", "median gap", "seconds"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for run in given.runs:
        gap = measured(run, given.n, given.rtol)
        gaps = gap.ode - gap.exact
        numbers = (shown(gap.exact), shown(gap.ode), shown(gaps), f"{gaps.median():.4f}", f"{gap.seconds:.0f}")
        table.add_row(run.name, gap.unit, *numbers)
    Console(width=140).print(table)


def measured(run: Path, n: int, rtol: float) -> Gap:
    """The two likelihoods of the first n test samples, or of all if there are fewer."""
    parts = load_parts(run)
    model = parts.denoiser
    parts.data.prepare_data()
    parts.data.setup()
    data = in_model_space(model, parts.data)
    settings = config.of_run(RunFolder.open(run))
    metrics = registry.create("metrics", settings["metrics"], data=parts.data)
    sigma = metrics.sigma_of(model)
    solution = Solution(sigma, model.sampling.schedule.sigma_max, rtol, rtol, 1)
    positions = torch.arange(min(n, len(data.test)))

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for indices in positions.split(BATCH):
            batch = data.test[indices]
            sources = generators(settings["seed"], indices.tolist())
            x, cond = data.dequantize(batch.x, sources), model.cond_of_batch(batch)
            with torch.no_grad():
                exact = model.log_prob(x, x.new_full((len(x),), sigma), cond)
            yield exact, ode_log_prob(model, x, solution, cond, sources)

    began = time.process_time()
    batches = list(track(pairs(), run.name, total=math.ceil(len(positions) / BATCH)))
    seconds = time.process_time() - began
    values = [per_dimension(torch.cat(part), math.prod(data.shape), data.levels) for part in zip(*batches, strict=True)]
    return Gap(values[0][0], values[0][1], values[1][1], seconds)


def shown(values: Tensor) -> str:
    """Mean ± standard error."""
    mean, error = mean_and_error(values)
    return f"{mean:.4f} ± {error:.4f}"


if __name__ == "__main__":
    main()
