"""Guidance by a classifier of noised samples: D_r = D_c − σ²·∇ₓ log p(c|x, σ), which by Bayes' rule is D(x, σ, ∅)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Denoise, Guidance, Guide, Pair, class_of
from flowdiff.diffusion.guidance.limits import Interval, Limits, Quantile, Share
from flowdiff.diffusion.guidance.other_run import other_run
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("guidance", "classifier")
class Classifier(Guide):
    """D_c + (w − 1)·σ²·∇ₓ log p(c|x, σ), p from a run of network=classifier; the model needs no label dropout.

    w = 1 is the conditional model alone, so that scales mean the same as those of cfg.
    classes: () -> the Conditioning of all num_classes classes.  load: a run folder -> its model.  shape: of one sample.
    guided: settings of a guidance -> the denoiser in it.
    run: the classifier's folder.  inner: settings of the guidance to stand around, None for the denoiser itself.
    Raises ConfigurationError where the run is no classifier or of other data.
    Source: Dhariwal, Nichol, Diffusion models beat GANs on image synthesis, 2021.
    """

    def __init__(
        self,
        denoiser: Denoise,
        classes: Callable[[], Conditioning] | None,
        num_classes: int | None,
        load: Callable[[str], Any],
        shape: tuple[int, ...],
        guided: Callable[[dict[str, Any]], Guidance],
        *,
        run: str | None,
        inner: dict[str, Any] | None,
        scale: NonNegativeFloat,
        interval: Interval,
        rescale: Share,
        dynamic_threshold: Quantile,
    ):
        inside = denoiser if inner is None else guided(inner)
        super().__init__(inside, scale, Limits(interval, rescale, dynamic_threshold))
        if classes is None:
            raise ConfigurationError(
                "guidance=classifier guides towards a class, and this model knows none: take conditioner=class, or "
                "guidance=none."
            )
        self.classes = classes
        self.classifier = other_run(load, run, shape, num_classes, "classifier")
        if not hasattr(self.classifier.network, "class_log_prob"):
            raise ConfigurationError(
                f"guidance.run={run} is no classifier: give a run of network=classifier, e.g. of "
                "`python train.py experiment=classifier_digits`."
            )

    @property
    def evaluations(self) -> int:
        return self.denoiser.evaluations + self.classifier.evaluations

    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Pair:
        own = class_of(cond, self.classes())[:, None]
        with torch.enable_grad():
            inner = x.detach().clone().requires_grad_(True)
            log_prob = self.classifier.class_log_prob(inner, sigma).gather(1, own)  # (B, 1)
            (gradient,) = torch.autograd.grad(log_prob.sum(), inner)
        D = self.denoiser(x, sigma, cond)
        return Pair(D, D - append_dims(sigma**2, x.ndim) * gradient)
