"""The Fréchet distance of feature statistics by three methods: flowdiff, scipy's sqrtm and torch-fidelity.

    python benchmarks/frechet.py [--features 2048] [--samples 5000] [--repeats 3] [--out frechet.json]

flowdiff solves one symmetric eigenproblem, scipy takes a matrix square root, and torch-fidelity computes eigenvalues of
a matrix that is not symmetric. All three receive the same means and covariances of correlated random features in
float64, run on one thread and take turns. The table shows the fewest seconds of each, in processor time, which other
programs on the machine hardly change, and the difference of each value from scipy's.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_statistics_to_metric

from flowdiff.evaluation.features.statistics import FeatureStatistics, frechet_distance


def by_flowdiff(a: FeatureStatistics, b: FeatureStatistics) -> float:
    return frechet_distance(a, b)


def by_scipy(a: FeatureStatistics, b: FeatureStatistics) -> float:
    root = sqrtm(a.cov.numpy() @ b.cov.numpy()).real
    return ((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()).item() - 2 * np.trace(root)


def by_torch_fidelity(a: FeatureStatistics, b: FeatureStatistics) -> float:
    given = ({"mu": s.mean.numpy(), "sigma": s.cov.numpy()} for s in (a, b))
    return fid_statistics_to_metric(*given, verbose=False)["frechet_inception_distance"]


METHODS = {"flowdiff": by_flowdiff, "scipy.linalg.sqrtm": by_scipy, "torch-fidelity": by_torch_fidelity}


def features(n: int, d: int, seed: int) -> FeatureStatistics:
    """Statistics of n features whose variances fall like 1/i, as the features of networks do."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) / torch.arange(1, d + 1).sqrt()
    return FeatureStatistics(d).update(x @ basis + 0.01 * seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    a, b = (features(given.samples, given.features, seed) for seed in (1, 2))
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    values: dict[str, float] = {}
    for _ in range(given.repeats):
        for name, method in METHODS.items():
            began = time.process_time()
            values[name] = method(a, b)
            seconds[name].append(time.process_time() - began)
    best = {name: min(taken) for name, taken in seconds.items()}
    table = Table(title=f"{given.features} features of {given.samples} samples, one thread", title_justify="left")
    for column in ("method", "seconds", "seconds / flowdiff's", "distance", "relative difference from scipy"):
        table.add_column(column, justify="left" if column == "method" else "right")
    reference = values["scipy.linalg.sqrtm"]
    for name in METHODS:
        apart = abs(values[name] / reference - 1)
        table.add_row(
            *(name, f"{best[name]:.2f}", f"{best[name] / best['flowdiff']:.1f}", f"{values[name]:.10g}", f"{apart:.1e}")
        )
    Console(width=120).print(table)
    if given.out:
        given.out.write_text(json.dumps({"seconds": seconds, "values": values, **vars(given), "out": None}, indent=2))


if __name__ == "__main__":
    main()
