"""A condition that carries a guidance scale, for networks that have learned what guidance does."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.base import Conditioner, Given
from flowdiff.models.conditioning import Conditioning

FREQUENCIES = (1.0, 2.0, 4.0)
WIDTH = 1 + 2 * len(FREQUENCIES)


class Scaled(Conditioner):
    """Another conditioner's condition, with the features of a guidance scale behind its vector.

    vector = [c.vector, γ(asinh w)],  γ(u) = (u, sin ωu, cos ωu),  ω = 1, 2, 4

    The scale is 1 where none is set, or the nearest that was trained.

    Args:
        inner: the other conditioner, of classes.
        scales: the smallest and the largest w of the training.

    Raises:
        ConfigurationError: the other conditioner has no classes.

    Source: Luo, Tan, Huang, Li, Zhao, Latent consistency models, 2023, after Meng et al., On distillation of guided
        diffusion models, 2023.
    """

    def __init__(self, inner: Conditioner, scales: tuple[float, float]):
        super().__init__()
        if inner.num_classes is None or inner.reads_text or not inner.dim:
            raise ConfigurationError(
                "loss.scales is the range of a guidance towards classes, and the conditioner has none: set "
                "conditioner=class or one_hot, or loss.scales=null."
            )
        self.inner = inner
        self.scales = low, high = scales
        self.usual = min(max(1.0, low), high)
        self.dim, self.token_dim = inner.dim + WIDTH, inner.token_dim
        self.num_classes, self.drop = inner.num_classes, inner.drop

    def condition(self, given: Given) -> Conditioning | None:
        return self._unguided(self.inner.condition(given))

    def null(self, n: int) -> Conditioning | None:
        return self._unguided(self.inner.null(n))

    def _unguided(self, cond: Conditioning | None) -> Conditioning:
        assert cond is not None  # there are classes
        assert cond.vector is not None
        features = _features(cond.vector.new_full((len(cond.vector),), self.usual))
        return replace(cond, vector=torch.cat([cond.vector, features], 1))


def with_scale(cond: Conditioning, scale: Tensor) -> Conditioning:
    """A condition of `Scaled` with other guidance scales (B,)."""
    assert cond.vector is not None
    return replace(cond, vector=torch.cat([cond.vector[:, :-WIDTH], _features(scale).to(cond.vector)], 1))


def _features(scale: Tensor) -> Tensor:
    """γ(asinh w) of scales (B,), (B, WIDTH)."""
    u = torch.asinh(scale)[:, None]
    phase = u * u.new_tensor(FREQUENCIES)
    return torch.cat([u, phase.sin(), phase.cos()], 1)
