"""The contract of a guidance, and the formula that all guides share: D_w = D_r + w·(D_c − D_r), within limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoise
from flowdiff.diffusion.guidance.limits import Limits
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.first_stage.base import FirstStage
from flowdiff.models.networks.base import Network
from flowdiff.noise import Generators


class Guidable(Denoise, Protocol):
    """A denoiser that a guidance can wrap: a model, or another guidance.

    evaluations: how many samples its networks have evaluated so far.
    """

    @property
    def network(self) -> Network: ...

    @property
    def evaluations(self) -> int: ...


class Model(Guidable, Protocol):
    """What guidance needs of a model: the one that is guided, or the one of another run that guides it."""

    @property
    def first_stage(self) -> FirstStage: ...

    @property
    def num_classes(self) -> int | None: ...

    def cond_of(self, label: Tensor) -> Conditioning | None: ...

    def log_prob_and_denoised(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def class_log_prob(self, x: Tensor, sigma: Tensor) -> Tensor: ...


class Start(Protocol):
    """What start=flow draws from: a density, or a flow that is guided inside its own sampling."""

    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        """Samples at the noise levels sigma (B,), (B, …)."""


class Guidance(ABC):
    """A denoiser around a denoiser: D is guided, and in `cfg` also the flow's own sampling, from which a start begins.

    Args:
        denoiser: what is wrapped.
    """

    def __init__(self, denoiser: Guidable):
        self.denoiser = denoiser

    @property
    def network(self) -> Network:
        """The network of the denoiser inside."""
        return self.denoiser.network

    @property
    def start(self) -> Start | None:
        """What start=flow draws from in place of the network's own density; None for that density."""
        return self.denoiser.start if isinstance(self.denoiser, Guidance) else None

    @property
    def evaluations(self) -> int:
        """How many samples its networks have evaluated so far."""
        return self.denoiser.evaluations

    @abstractmethod
    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The guided D (B, …) of x (B, …) at sigma (B,), for the condition of B samples."""


@dataclass(frozen=True)
class Pair:
    """D_c, and the reference D_r that a guide moves away from, (B, …) each."""

    conditional: Tensor
    reference: Tensor


class Guide(Guidance):
    """D_r + w·(D_c − D_r) within limits. At w = 1 and outside the interval it is D_c, by one evaluation.

    Args:
        denoiser: what is wrapped.
        scale: w ≥ 0.
        limits: where it guides, and how far.

    Raises:
        ConfigurationError: it asks about other conditions than c, and wraps another guide, which cannot answer.
    """

    needs_condition: bool = True
    innermost: bool = False  # whether it asks about other conditions than c, which no other guide can answer

    def __init__(self, denoiser: Guidable, scale: float, limits: Limits):
        if self.innermost and isinstance(denoiser, Guide):
            raise ConfigurationError(
                f"{type(self).__name__} cannot wrap {type(denoiser).__name__}, which guides towards one class while "
                f"{type(self).__name__} asks about others: put {type(self).__name__} inside."
            )
        super().__init__(denoiser)
        self.scale = scale
        self.limits = limits

    @abstractmethod
    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Pair:
        """D_c and D_r for x (B, …), sigma (B,) and the condition of B samples."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """D_w (B, …); ConfigurationError where a condition is needed and there is none."""
        if cond is None and self.needs_condition:
            raise ConfigurationError(
                "this guidance was given no condition to guide towards: use a model with conditioner=class, or "
                "guidance=none."
            )
        if self.scale == 1:
            return self.denoiser(x, sigma, cond)
        inside = self.limits.inside(sigma)
        if self.limits.interval is None or bool(inside.all()):
            return self._guided(x, sigma, cond)
        if not bool(inside.any()):
            return self.denoiser(x, sigma, cond)
        D = torch.empty_like(x)  # the samples of a batch may be at different noise levels
        for rows, denoise in ((inside, self._guided), (~inside, self.denoiser)):
            D[rows] = denoise(x[rows], sigma[rows], None if cond is None else cond[rows]).to(D)
        return D

    def _guided(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Tensor:
        pair = self.pair(x, sigma, cond)
        return self.limits(pair.reference + self.scale * (pair.conditional - pair.reference), pair.conditional)


def class_of(cond: Conditioning, classes: Conditioning) -> Tensor:
    """The class of each sample's condition, (B,): the nearest among the conditions of all classes."""
    rows, n = Conditioning.cat([cond, classes]).flat().float(), len(cond.flat())
    return torch.cdist(rows[:n], rows[n:]).argmin(1)


def given(cond: Conditioning | None) -> Conditioning:
    """The condition, which `Guide.__call__` has checked to be there."""
    assert cond is not None
    return cond
