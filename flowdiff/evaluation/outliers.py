"""Telling foreign data from the model's own by its exact density.

    AUROC = P(log p_σ(own) > log p_σ(foreign)),   1 if every own sample is likelier than every foreign one, ½ by chance

Density alone can rank smooth foreign images above the model's own, whatever the model (Nalisnick et al., Do deep
generative models know what they don't know?, 2019): the number is a property of both data sets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowdiff.conditioning import Conditioning


def permuted(x: Tensor, seed: int = 0) -> Tensor:
    """x (N, …) with the dimensions of every sample in one and the same random order: each value kept, no shape left."""
    order = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(seed))
    return x.flatten(1)[:, order.to(x.device)].view_as(x)


def auroc(
    denoiser: nn.Module,
    own: Tensor,
    foreign: Tensor,
    sigma: float,
    null: Callable[[int], Conditioning | None],
    *,
    batch_size: int,
) -> float:
    """AUROC ∈ [0, 1] of log p_σ(x) for samples own (N, …) against foreign (M, …), both in model space.

    null(n) is the condition "no class" of n samples. Raises NotADensity as `denoiser.log_prob` does.
    """
    from sklearn.metrics import roc_auc_score

    device = denoiser.sigma_data.device
    scores = []
    for x in torch.cat([own, foreign]).split(batch_size):
        with torch.no_grad():
            scores.append(denoiser.log_prob(x.to(device), x.new_full((len(x),), sigma).to(device), null(len(x))))
    belongs = [1] * len(own) + [0] * len(foreign)
    return float(roc_auc_score(belongs, torch.cat(scores).double().cpu().numpy()))
