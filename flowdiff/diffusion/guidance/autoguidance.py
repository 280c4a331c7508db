"""Autoguidance: away from a weaker model of the same data, which makes the same errors, only larger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidance, Guide, Model, Pair, class_of, given
from flowdiff.diffusion.guidance.limits import Interval, Limits, Quantile, Share
from flowdiff.diffusion.guidance.other_run import other_run
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


@register("guidance", "autoguidance")
class Autoguidance(Guide):
    """D_weak + w·(D − D_weak); the weak model is a run with fewer steps or parameters, conditional or not.

    Args:
        denoiser: the model to be guided.
        classes: () → the conditions of all its classes; None for an unconditional model.
        load: run folder → its model.
        guided: settings of a guidance → the model in that guidance.
        run: folder of the weak model.
        inner: settings of a guidance to wrap, e.g. {name: cfg, scale: 2}; None for the model itself.
        scale: w ≥ 0; 1 is the model itself.
        interval: [low, high] of σ at which to guide; None for every σ.
        rescale: φ ∈ [0, 1], how far D goes back to the standard deviation of D_c.
        dynamic_threshold: quantile ∈ (0, 1] of |D| that becomes 1 where it exceeds 1; None for no threshold.

    Raises:
        ConfigurationError: no run is given, or it does not fit the model's data.

    Source: Karras, Aittala, Kynkäänniemi, Lehtinen, Aila, Laine, Guiding a diffusion model with a bad version of
        itself, 2024.
    """

    needs_condition = False

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
        self.classes = classes
        self.weak = other_run(load, run, denoiser, "autoguidance")

    @property
    def evaluations(self) -> int:
        return self.denoiser.evaluations + self.weak.evaluations

    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Pair:
        weak_cond = None
        if self.weak.num_classes is not None:  # each model has learned its own embedding of the classes
            assert self.classes is not None  # `other_run` has checked that both know the same classes
            weak_cond = self.weak.cond_of(class_of(given(cond), self.classes()))
        return Pair(self.denoiser(x, sigma, cond), self.weak(x, sigma, weak_cond))
