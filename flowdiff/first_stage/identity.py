"""The first stage that does nothing: the model lives in data space."""

from __future__ import annotations

from torch import Tensor, nn

from flowdiff.registry import register


@register("first_stage", "identity")
class IdentityFirstStage(nn.Module):
    """encode and decode return their argument; a latent has the data's own shape."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.latent_shape = tuple(shape)

    def encode(self, x: Tensor) -> Tensor:
        """Data (B, *shape) → latent (B, *latent_shape)."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Latent (B, *latent_shape) → data (B, *shape)."""
        return z
