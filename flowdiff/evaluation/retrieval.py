"""Retrieval: how often an image is nearest to its own caption among others, and a caption to its own image."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.data.base import DataModule
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.models.networks.base import ImageTextNetwork

CANDIDATES = 100  # captions among which an image has to find its own
TOP = (1, 5)


@torch.no_grad()
def retrieval(denoiser: ConditionedDenoiser, data: DataModule) -> dict[str, float]:
    """recall@k of the test split both ways, {} for a network that does not embed images and captions.

    Returns:
        {"recall_<k>_image_to_text", "recall_<k>_text_to_image"} for k of TOP: the share of images whose own caption is
        among the k nearest of CANDIDATES captions, and the reverse; num_candidates.
    """
    network = denoiser.network
    if not isinstance(network, ImageTextNetwork):
        return {}
    ranks: list[tuple[Tensor, Tensor]] = []
    # Parts of equal size; a rest that is smaller than the others would be easier.
    size = min(CANDIDATES, len(data.test))
    for start in range(0, len(data.test) - size + 1, size):
        batch = data.test[start : start + size]
        cond = denoiser.cond_of_batch(batch)
        assert cond is not None  # the network takes conditioner=word_ids only
        images = network.embed_images(data.centre(batch.x).to(denoiser.sigma_data.device))
        ranks.append(ranks_of(images @ network.embed_texts(cond).T))
    found: dict[str, float] = {}
    for direction, parts in zip(("image_to_text", "text_to_image"), zip(*ranks, strict=True), strict=True):
        for k in TOP:
            found[f"recall_{k}_{direction}"] = (torch.cat(parts) < k).double().mean().item()
    return {**found, "num_candidates": size}


def ranks_of(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """How many others are nearer than the own one, of each row and of each column of a square matrix: (n,) each."""
    own = similarity.diagonal()
    return (similarity > own[:, None]).sum(1).cpu(), (similarity > own[None]).sum(0).cpu()
