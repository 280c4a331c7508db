"""Telling foreign data from the model's own data by its exact density.

    AUROC = P(log p_σ(own) > log p_σ(foreign)),   1 if every own sample is likelier than every foreign one, ½ for chance

Any density can rank smooth foreign images above the model's own (Nalisnick et al., Do deep
generative models know what they don't know?, 2019): the number is a property of both data sets.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from flowdiff.data.base import DataModule, Dataset
from flowdiff.data.encoded import Encoded
from flowdiff.data.readers import evenly
from flowdiff.data.torchvision_sets import TorchvisionSet
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.errors import DataError
from flowdiff.evaluation.densities.classification import log_joint
from flowdiff.noise import generators
from flowdiff.registry import create, names, resolve

log = logging.getLogger(__name__)


def outlier_scores(
    denoiser: ConditionedDenoiser, data: Dataset, sigma: float, *, seed: int, batch_size: int, most: int | None = None
) -> dict[str, float]:
    """{name of a foreign set: AUROC of the test split against it}.

    Images are dequantised uniformly and scored by log p_σ(x); a class-conditional density is summed over the classes.

    Args:
        denoiser: a density.
        data: the data set in the model's space.
        sigma: noise level of the density.
        seed: the dequantisation of image i of a set depends on (seed, i) only.
        batch_size: images per batch.
        most: number of images of each set, evenly spaced; None for all.

    Raises:
        NotADensity: the network is not a density.
    """
    positions = evenly(len(data.test), most)

    def log_density(x_raw: Tensor) -> Tensor:
        x = data.dequantize(x_raw, generators(seed, range(len(x_raw))))
        parts = [_log_density(denoiser, part, sigma) for part in x.split(batch_size)]
        return torch.cat(parts).double().cpu()

    own_raw = data.test[positions].x
    own = log_density(own_raw)
    scores = {"permuted": auroc(own, log_density(permuted(own_raw)))}
    for name, other in neighbours(data.data if isinstance(data, Encoded) else data):
        foreign_raw = other.test[evenly(len(other.test), len(positions))].x
        scores[name] = auroc(own, log_density(foreign_raw))
    return scores


def auroc(own: Tensor, foreign: Tensor) -> float:
    """P(own > foreign) + ½·P(own = foreign) ∈ [0, 1] for scores own (N,) and foreign (M,); NaN if a score is."""
    if own.isnan().any() or foreign.isnan().any():
        return math.nan
    ordered = foreign.sort().values
    below = torch.searchsorted(ordered, own) + torch.searchsorted(ordered, own, right=True)
    return (below.double().mean() / (2 * len(foreign))).item()


def permuted(x: Tensor, seed: int = 0) -> Tensor:
    """x (N, …) with the dimensions of every sample in the same random order: the values stay, the shapes are gone."""
    order = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(seed))
    return x.flatten(1)[:, order.to(x.device)].view_as(x)


def neighbours(data: Dataset) -> list[tuple[str, DataModule]]:
    """(name, data) of each other data set of the same shape with files in the same root folder; never downloads."""
    if not isinstance(data, TorchvisionSet):
        return []
    found: list[tuple[str, DataModule]] = []
    for name in names("dataset"):
        kind = resolve("dataset", name)
        if issubclass(kind, TorchvisionSet) and kind.shape == data.shape and name != data.name:
            other = create("dataset", name, root=str(data.root), download=False)
            try:
                other.setup()
            except DataError as error:  # its files are not there
                log.debug("no AUROC against %s: %s", name, error)
            else:
                found.append((name, other))
    return found


@torch.no_grad()
def _log_density(denoiser: ConditionedDenoiser, x: Tensor, sigma: float) -> Tensor:
    """log p_σ(x) in nats (B,), summed over the classes of a class-conditional density."""
    x = x.to(denoiser.sigma_data.device)
    sigmas = x.new_full((len(x),), sigma)
    if denoiser.num_classes is None:
        return denoiser.log_prob(x, sigmas, None)
    return log_joint(denoiser, x, sigmas).logsumexp(1)
