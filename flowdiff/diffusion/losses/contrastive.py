"""The symmetric contrastive loss of images and their captions."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import NEEDS_IMAGES_AND_TEXT, Loss, LossOutput
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import ImageTextNetwork
from flowdiff.registry import register


@register("loss", "contrastive", requires=[NEEDS_IMAGES_AND_TEXT])
class Contrastive(Loss):
    """The symmetric cross-entropy of images and captions, in nats; σ has no effect.

    loss_i = −½·log softmax_j(s⟨u_i, v_j⟩)_i − ½·log softmax_j(s⟨u_j, v_i⟩)_i

    The candidates j are the samples of the batch, of all processes together; s is the network's own scale. The part
    `accuracy` is 1 for an image whose nearest caption is its own, else 0.

    Source: Radford et al., Learning transferable visual models from natural language supervision, 2021.
    """

    differentiates_score = False

    def __init__(self) -> None:
        pass

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        assert isinstance(denoiser.network, ImageTextNetwork)  # the requirement
        assert cond is not None  # the network takes conditioner=word_ids only
        return contrastive(denoiser.network, x0, cond, together=True)


def contrastive(network: ImageTextNetwork, x: Tensor, cond: Conditioning, together: bool = False) -> LossOutput:
    """The loss above for images x (B, …) and their captions.

    together: whether the samples of all processes are candidates; each process then has equally many.
    """
    image, text = network.embed_images(x), network.embed_texts(cond)
    images, texts, first = image, text, 0
    if together and distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        from torch.distributed.nn.functional import all_gather  # differentiable

        images, texts = torch.cat(all_gather(image)), torch.cat(all_gather(text))
        first = distributed.get_rank() * len(x)
    own = first + torch.arange(len(x), device=image.device)
    of_image, of_text = network.scale * image @ texts.T, network.scale * text @ images.T  # (B, number of candidates)
    losses = [torch.nn.functional.cross_entropy(scores, own, reduction="none") for scores in (of_image, of_text)]
    return LossOutput((losses[0] + losses[1]) / 2, {"accuracy": (of_image.argmax(1) == own).to(image)})
