"""Telling foreign data from the model's own by its exact density.

    AUROC = P(log p_σ(own) > log p_σ(foreign)),   1 if every own sample is likelier than every foreign one, ½ by chance

Density alone can rank smooth foreign images above the model's own, whatever the model (Nalisnick et al., Do deep
generative models know what they don't know?, 2019): the number is a property of both data sets.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.data.encoded import Encoded
from flowdiff.data.readers import dequantised, evenly
from flowdiff.data.torchvision_sets import TorchvisionSet
from flowdiff.errors import DataError
from flowdiff.evaluation.densities.classification import log_joint
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators
from flowdiff.registry import create, names, resolve

log = logging.getLogger(__name__)


def outlier_scores(
    denoiser: nn.Module,
    data: Any,
    sigma: float,
    cond_of: Callable[[Tensor], Conditioning | None],
    *,
    seed: int,
    batch_size: int,
    most: int | None = None,
) -> dict[str, float]:
    """{name of a foreign set: AUROC of the test split against it}, of `most` images each, evenly spaced; None for all.

    All are uniformly dequantised and judged by log p_σ(x), the class-conditional model's summed over the classes.
    Raises NotADensity as `denoiser.log_prob` does.
    """
    positions = evenly(len(data.test), most)

    def log_density(x_raw: Tensor) -> Tensor:
        x = dequantised(data, x_raw, generators(seed, range(len(x_raw))))
        parts = [_log_density(denoiser, part, sigma, cond_of) for part in x.split(batch_size)]
        return torch.cat(parts).double().cpu()

    own_raw = data.test[positions].x
    own = log_density(own_raw)
    found = {"permuted": auroc(own, log_density(permuted(own_raw)))}
    for name, other in neighbours(data.pixels if isinstance(data, Encoded) else data):
        foreign_raw = other.test[evenly(len(other.test), len(positions))].x
        found[name] = auroc(own, log_density(foreign_raw))
    return found


def auroc(own: Tensor, foreign: Tensor) -> float:
    """P(own > foreign) + ½·P(own = foreign) ∈ [0, 1] for scores own (N,) and foreign (M,); NaN if a score is."""
    if own.isnan().any() or foreign.isnan().any():
        return math.nan
    ordered = foreign.sort().values
    below = torch.searchsorted(ordered, own) + torch.searchsorted(ordered, own, right=True)
    return (below.double().mean() / (2 * len(foreign))).item()


def permuted(x: Tensor, seed: int = 0) -> Tensor:
    """x (N, …) with the dimensions of every sample in one and the same random order: each value kept, no shape left."""
    order = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(seed))
    return x.flatten(1)[:, order.to(x.device)].view_as(x)


def neighbours(data: Any) -> list[tuple[str, Any]]:
    """The data sets with samples of the same shape whose files lie in the same root folder, read, never downloaded."""
    if not isinstance(data, TorchvisionSet):
        return []
    found = []
    for name in names("dataset"):
        kind = resolve("dataset", name)
        if issubclass(kind, TorchvisionSet) and kind.shape == data.shape and name != data.name:
            other = create("dataset", name, root=str(data.root), download=False)
            try:
                other.setup()
            except DataError as error:  # it is not there, and need not be
                log.debug("no AUROC against %s: %s", name, error)
            else:
                found.append((name, other))
    return found


@torch.no_grad()
def _log_density(
    denoiser: nn.Module, x: Tensor, sigma: float, cond_of: Callable[[Tensor], Conditioning | None]
) -> Tensor:
    x = x.to(denoiser.sigma_data.device)
    sigmas = x.new_full((len(x),), sigma)
    if denoiser.num_classes is None:
        return denoiser.log_prob(x, sigmas, None)
    return log_joint(denoiser, x, sigmas, cond_of, denoiser.num_classes).logsumexp(1)
