"""The first stage that does nothing: the model works in data space."""

from __future__ import annotations

from torch import Tensor

from flowdiff.models.first_stage.base import FirstStage
from flowdiff.noise import Generators
from flowdiff.registry import register


@register("first_stage", "identity")
class IdentityFirstStage(FirstStage):
    """No autoencoder: the latent is the sample itself.

    z = x

    Args:
        shape: shape of one sample.
    """

    is_identity = True

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.latent_shape = tuple(shape)

    def encode(self, x: Tensor, generator: Generators = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def shares_space(self, other: FirstStage) -> bool:
        return other.is_identity
