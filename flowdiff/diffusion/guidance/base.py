"""What every guidance is, and what every guide shares: D_w = D_r + w·(D_c − D_r), within its limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowdiff.diffusion.guidance.limits import Limits
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning

Denoise = Callable[[Tensor, Tensor, Conditioning | None], Tensor]


class Guidance(ABC):
    """A denoiser around a denoiser: only D is guided, `network` is the one inside, a density or not."""

    needs_null = False  # whether it asks the model without its condition, which label dropout has to train

    def __init__(self, denoiser: Denoise):
        self.denoiser = denoiser

    @property
    def network(self) -> Any:
        """The network of the denoiser inside."""
        return self.denoiser.network

    @property
    def evaluations(self) -> int:
        """How many samples its networks have evaluated so far, where the denoiser counts them."""
        return self.denoiser.evaluations

    @abstractmethod
    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """x (B, …), sigma (B,), cond of B samples -> the guided D (B, …)."""


class Pair(NamedTuple):
    """D_c, and the reference D_r that a guide leads away from, (B, …) each."""

    conditional: Tensor
    reference: Tensor


class Guide(Guidance):
    """D_r + w·(D_c − D_r) within limits; D_c alone, by one evaluation of the denoiser, at w = 1 and off the interval.

    scale: w ≥ 0.  A guide says what `pair` is. Raises ConfigurationError where it stands around another it cannot.
    """

    needs_condition = True
    innermost = False  # whether it asks about other conditions than c, of which no other guide has an answer

    def __init__(self, denoiser: Denoise, scale: float, limits: Limits):
        if self.innermost and isinstance(denoiser, Guide):
            raise ConfigurationError(
                f"{type(self).__name__} cannot stand around {type(denoiser).__name__}, which guides towards one class "
                "while it asks about others: put it inside."
            )
        super().__init__(denoiser)
        self.scale = scale
        self.limits = limits

    @abstractmethod
    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Pair:
        """x (B, …), sigma (B,), cond of B samples -> D_c and D_r."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """D_w (B, …); ConfigurationError without a condition, where there has to be one."""
        if cond is None and self.needs_condition:
            raise ConfigurationError(
                "this guidance was given no condition to guide towards: take a model with conditioner=class, or "
                "guidance=none."
            )
        if self.scale == 1:
            return self.denoiser(x, sigma, cond)
        inside = self.limits.inside(sigma)
        if self.limits.interval is None or bool(inside.all()):
            return self._guided(x, sigma, cond)
        if not bool(inside.any()):
            return self.denoiser(x, sigma, cond)
        D = torch.empty_like(x)  # a batch may be at several levels
        for rows, denoise in ((inside, self._guided), (~inside, self.denoiser)):
            D[rows] = denoise(x[rows], sigma[rows], None if cond is None else cond[rows]).to(D)
        return D

    def _guided(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Tensor:
        conditional, reference = self.pair(x, sigma, cond)
        return self.limits(reference + self.scale * (conditional - reference), conditional)


def class_of(cond: Conditioning, classes: Conditioning) -> Tensor:
    """Which class each sample's condition is that of, (B,): the nearest among the conditions of all classes."""
    rows, n = Conditioning.cat([cond, classes]).flat().float(), len(cond.flat())
    return torch.cdist(rows[:n], rows[n:]).argmin(1)
