"""Autoguidance: away from a weaker model of the same data, which errs where this one does, only more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Denoise, Guidance, Guide, Pair, class_of
from flowdiff.diffusion.guidance.limits import Interval, Limits, Quantile, Share
from flowdiff.diffusion.guidance.other_run import other_run
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


@register("guidance", "autoguidance")
class Autoguidance(Guide):
    """D_weak + w·(D − D_weak), the weak model a run of fewer steps or parameters, conditional or not.

    classes: () -> the Conditioning of all num_classes classes, both None for an unconditional model.
    load: a run folder -> its model.  shape: of one sample.  guided: settings of a guidance -> the denoiser in it.
    run: the weak model's folder.  inner: settings of the guidance to stand around, None for the denoiser itself.
    Raises ConfigurationError where that is of other data.
    Source: Karras, Aittala, Kynkäänniemi, Lehtinen, Aila, Laine, Guiding a diffusion model with a bad version of
    itself, 2024.
    """

    needs_condition = False

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
        self.classes = classes
        self.weak = other_run(load, run, shape, num_classes, "autoguidance")

    @property
    def evaluations(self) -> int:
        return self.denoiser.evaluations + self.weak.evaluations

    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Pair:
        weak_cond = None
        if self.weak.num_classes is not None:  # each model has learned its own embedding of the classes
            weak_cond = self.weak.cond_of(class_of(cond, self.classes()))
        return Pair(self.denoiser(x, sigma, cond), self.weak(x, sigma, weak_cond))
