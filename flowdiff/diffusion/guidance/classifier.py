"""Guidance by a classifier of noised samples: D_r = D_c − σ²·∇ₓ log p(c|x, σ), which by Bayes' rule is D(x, σ, ∅)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidance, Guide, Model, Pair, class_of, given
from flowdiff.diffusion.guidance.limits import Interval, Limits, Quantile, Share
from flowdiff.diffusion.guidance.other_run import other_run
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import NoisyClassifier
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("guidance", "classifier")
class Classifier(Guide):
    """D_c + (w − 1)·σ²·∇ₓ log p(c|x, σ), p from a run of network=classifier; the model needs no label dropout.

    w = 1 is the conditional model alone, so that scales have the same meaning as those of cfg.

    Args:
        denoiser: the model to be guided.
        classes: () → the conditions of all its classes; None for an unconditional model.
        load: run folder → its model.
        guided: settings of a guidance → the model in that guidance.
        run: folder of the classifier.
        inner: settings of a guidance to wrap, e.g. {name: cfg, scale: 2}; None for the model itself.
        scale: w ≥ 0; 1 is the conditional model.
        interval: [low, high] of σ at which to guide; None for every σ.
        rescale: φ ∈ [0, 1], how far D goes back to the standard deviation of D_c.
        dynamic_threshold: quantile ∈ (0, 1] of |D| that becomes 1 where it exceeds 1; None for no threshold.

    Raises:
        ConfigurationError: the model is unconditional, no run is given, or it is not a classifier of the same data.

    Source: Dhariwal & Nichol, Diffusion models beat GANs on image synthesis, 2021.
    """

    def __init__(
        self,
        denoiser: Model,
        classes: Callable[[], Conditioning] | None,
        load: Callable[[str], Model],
        guided: Callable[[dict[str, Any]], Guidance],
        *,
        run: str | None,
        inner: dict[str, Any] | None,
        scale: NonNegativeFloat,
        interval: Interval,
        rescale: Share,
        dynamic_threshold: Quantile,
    ):
        super().__init__(
            denoiser if inner is None else guided(inner), scale, Limits(interval, rescale, dynamic_threshold)
        )
        if classes is None:
            raise ConfigurationError(
                "guidance=classifier guides towards a class, and this model is unconditional: use conditioner=class, "
                "or guidance=none."
            )
        self.classes = classes
        self.classifier = other_run(load, run, denoiser, "classifier")
        if not isinstance(self.classifier.network, NoisyClassifier):
            raise ConfigurationError(
                f"guidance.run={run} is not a classifier: give a run of network=classifier, e.g. of "
                "`python train.py experiment=classifier_digits`."
            )

    @property
    def evaluations(self) -> int:
        return self.denoiser.evaluations + self.classifier.evaluations

    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Pair:
        own = class_of(given(cond), self.classes())[:, None]
        with torch.enable_grad():
            inner = x.detach().clone().requires_grad_(True)
            log_prob = self.classifier.class_log_prob(inner, sigma).gather(1, own)  # (B, 1)
            (gradient,) = torch.autograd.grad(log_prob.sum(), inner)
        D = self.denoiser(x, sigma, cond)
        return Pair(D, D - append_dims(sigma**2, x.ndim) * gradient)
