"""Which methods draw from the posterior, and what they cost: simulation-based calibration of every posterior.

    python benchmarks/calibration.py                          # a mixture in 8 dimensions, whose density is exact
    python benchmarks/calibration.py --run outputs/default-<id> --truths 100 --seeds 1

For each of several seeds truths are drawn from the prior, measured by 4 random projections (of a run: the left half is
missing), and drawn again. p is the probability of ranks as uneven as those found if the method is right, the smallest
of the seeds; below 0.01 it is not. Then the bias is told from the spread: the mean rank (0.5 if right) and the coverage
of the central 90 % interval. The cost is in network evaluations
for a draw, derivatives included. With --run the trained flow itself is the truth, at its smallest noise level.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import flowdiff
from flowdiff import registry
from flowdiff.diffusion.measurements import Measurement
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.posteriors import Drawing
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.restoration.calibration import Calibration, calibrate
from flowdiff.models.networks.base import Density
from flowdiff.testing import oracles
from flowdiff.testing.models import model_of

DIM, DRAWS, BINS = 8, 19, 10
LIMIT = 0.01  # of p
SIGMA_Y = 0.3


@dataclass(frozen=True)
class Problem:
    """A prior whose truths can be drawn, and what is measured of them."""

    model: ConditionedDenoiser
    measurement: Measurement

    def truths(self, n: int, seed: int) -> tuple[Tensor, list[int] | None]:
        """n exact samples of the prior, and their classes."""
        model, network = self.model, self.model.network
        assert isinstance(network, Density)
        labels = model.labels(n, None)
        cond = None if labels is None else model.cond_of(labels)
        sigma = torch.full((n,), model.sampling.schedule.sigma_min)
        x = network.sample(sigma, cond, torch.Generator().manual_seed(1000 + seed))
        return x, None if labels is None else labels.tolist()


def mixture() -> Problem:
    """Three Gaussians in 8 dimensions, near enough to each other for a chain to go between them."""
    means = 0.5 * torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))
    prior = oracles.Mixture(means, torch.tensor([0.5, 0.4, 0.6]), torch.tensor([0.5, 0.3, 0.2]))
    square = float(prior.covariance.trace() / DIM + prior.mean.square().mean())
    model = model_of(prior.network, shape=(DIM,), sigma_data=square**0.5)
    return Problem(model, registry.create("measurement", "compressed", shape=(DIM,), share=0.5, sigma_y=SIGMA_Y))


def of_run(folder: str) -> Problem:
    """The flow of a run, of whose samples the left half is missing."""
    model = flowdiff.load(folder)
    if not isinstance(model.network, Density):
        raise ConfigurationError(f"--run={folder} has no density to draw truths from: give a run of a score flow.")
    return Problem(model, registry.create("measurement", "inpaint", shape=model.first_stage.latent_shape))


def calibration(problem: Problem, name: str, truths: int, seed: int) -> Calibration:
    """The ranks of the truths of a seed among the draws of a method."""
    truth, labels = problem.truths(truths, seed)
    made = partial(registry.create, measurement=problem.measurement, sigma_data=float(problem.model.sigma_data))
    sampler = registry.create("sampler", "ancestral")
    drawing = Drawing(DRAWS, seed, labels, sampler=sampler, clip=False, batch_size=2000)
    return calibrate(problem.model, problem.measurement, made("posterior", name), truth, drawing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [name for name in registry.names("posterior") if name != "none"]
    parser.add_argument("posteriors", nargs="*", default=every)
    parser.add_argument("--run", help="run folder of a score flow; without it the mixture")
    parser.add_argument("--truths", type=int, default=1000, help="measurements of a seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    problem = of_run(given.run) if given.run else mixture()
    table = Table(title=f"{given.seeds} seeds of {given.truths} truths, {DRAWS} draws each", title_justify="left")
    for column in ("posterior", "smallest p", "calibrated", "mean rank", "in 90 %", "CRPS", "cost"):
        table.add_column(column, justify="left" if column == "posterior" else "right")
    rows = {name: row(problem, name, given.truths, given.seeds) for name in given.posteriors}
    for name, found in rows.items():
        shown = [f"{found[key]:.3f}" for key in ("mean_rank", "coverage_90", "crps")]
        verdict = "yes" if found["p"] > LIMIT else "no"
        table.add_row(name, f"{found['p']:.2g}", verdict, *shown, f"{found['nfe']:,.0f}")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


def row(problem: Problem, name: str, truths: int, seeds: int) -> dict[str, float]:
    """The numbers of a method over all seeds."""
    found = [calibration(problem, name, truths, seed) for seed in range(seeds)]
    numbers = [one.found.numbers() for one in found]
    of_numbers = torch.cat([one.ranks for one in found]).double()[:, : math.prod(problem.measurement.shape)]
    mean = {key: sum(one[key] for one in numbers) / seeds for key in ("coverage_90", "crps", "nfe")}
    return {"p": min(one.p_value(BINS) for one in found), "mean_rank": float(of_numbers.mean()) / DRAWS, **mean}


if __name__ == "__main__":
    main()
