"""The linear–activation flow: invertible linear maps with conditioned, invertible activations between them.

One layer is  z ← W z,  z ← e^g·z + b,  z ← z + w·r(k·z)/k,  and the last one is followed by  z ← W z  (unless W is
orthogonal). r is the bend of the chosen activation (flowdiff/models/activations.py). g, b, w and k, one number per
dimension each, are a linear map, zero at the start, of the embedding of (¼ ln σ, c). With W = I the flow starts as the
identity, and (σ, c) alone sets how far each activation is from it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.activations import MAX_STRENGTH, Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flattened, Flow, Sequential
from flowdiff.models.flows.gate import gated
from flowdiff.models.flows.linear_maps import PLU, Householder, Kronecker, LinearMap, Rotation, max_reflections
from flowdiff.models.flows.steered import Steered
from flowdiff.registry import register

MAPS: dict[str, type[LinearMap]] = {
    "rotation": Rotation,
    "plu": PLU,
    "householder": Householder,
    "kronecker": Kronecker,
}
MAX_TRAINING_BYTES = 2**30  # that one linear map may hold in training
# What the error recommends if a map would hold more: the words to type, and the map they choose.
SMALLER_MAPS: dict[str, tuple[type[LinearMap], dict[str, int]]] = {
    "flow.linear=kronecker": (Kronecker, {}),
    "flow.linear=householder flow.reflections=64": (Householder, {"reflections": 64}),
}


@register("flow", "linear_activation")
class LinearActivation(Flow):
    """Invertible linear maps with (σ, c)-conditioned affine maps and activations between them, for any samples.

    z = W_n a_{n−1}(… W_1 a_0(W_0 x)),  a(y) = u + w·r(k·u)/k with u = e^g·y + b

    |w| < 0.95, so the slope of every activation stays in [0.05, 1.95]. The flow is as smooth as its activation: C^∞ for
    softplus, tanh and swish.

    Args:
        shape: shape of one sample, of any rank, flattened to D = prod(shape) dimensions.
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: its bijection is the activation of every layer.
        n_flows: number of layers, ≥ 1.
        linear: the maps W, rotation | plu | householder | kronecker (flowdiff/models/flows/linear_maps.py).
        reflections: reflections of linear=householder, an even number ≥ 2; None: D rounded up to even.
        log_scale_bound: bound > 0 of |g|, in nats per dimension.
        log_sharpness_bound: bound > 0 of |ln k|.
        checkpoint: recompute each map in the backward pass instead of storing its activations.

    Raises:
        ConfigurationError: a linear map would hold more than 1 GiB in training; raised before anything is allocated.
        ConfigurationError: reflections is given with another map, or is more than are needed for every rotation.
    """

    takes_gate = True
    inverse_by = "the activation's: closed form or Newton's method"

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        *,
        n_flows: PositiveInt,
        linear: Literal["rotation", "plu", "householder", "kronecker"],
        reflections: Annotated[int, Field(ge=2, multiple_of=2)] | None,
        log_scale_bound: PositiveFloat,
        log_sharpness_bound: PositiveFloat,
        checkpoint: bool,
    ):
        super().__init__()
        dim = math.prod(shape)
        settings = _map_settings(linear, reflections, dim)
        _check_memory(linear, shape, settings)
        maps = MAPS[linear].chain(shape, n_flows, **settings)
        layers: list[Flow] = []
        for i in range(n_flows):
            layers += [maps[i], ConditionedActivation(dim, embed_dim, activation, log_scale_bound, log_sharpness_bound)]
        self.flow = Flattened(Sequential([*layers, *maps[n_flows:]], checkpoint))

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # every operation acts on x itself
            return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            return self.flow.inverse(z, cond)


class ConditionedActivation(Steered):
    """Elementwise affine map and activation with parameters from the condition's vector.

    y = e^g·x + b,  z = y + w·r(k·y)/k,  g = c·tanh(·/c),  w = 0.95·tanh(·),  k = exp(c_k·tanh(·)),  b unbounded

    g, b, w and k come from one linear map of e, zero at the start.

    Args:
        dim: D of x (B, D).
        embed_dim: width of the embedding e.
        activation: r is its bend.
        log_scale_bound: c > 0, in nats.
        log_sharpness_bound: c_k > 0.
    """

    def __init__(
        self,
        dim: int,
        embed_dim: int,
        activation: Activation,
        log_scale_bound: float,
        log_sharpness_bound: float,
    ):
        super().__init__(embed_dim, 4 * dim)
        self.activation = activation
        self.log_scale_bound = log_scale_bound
        self.log_sharpness_bound = log_sharpness_bound

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        g, b, w, k = self._parameters_of(cond)
        z, log_slope = self.activation.bijection(torch.addcmul(b, x, torch.exp(g)), w, k)
        return z, (g + log_slope).sum(1)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        g, b, w, k = self._parameters_of(cond)
        y, log_slope = self.activation.inverse(z, w, k)
        return (y - b) * torch.exp(-g), (log_slope - g).sum(1)

    def _parameters_of(self, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g, b, w, k = gated(self.steered(cond), cond).chunk(4, dim=1)  # (B, D) each
        g = self.log_scale_bound * torch.tanh(g / self.log_scale_bound)
        return g, b, MAX_STRENGTH * torch.tanh(w), torch.exp(self.log_sharpness_bound * torch.tanh(k))


def _map_settings(linear: str, reflections: int | None, dim: int) -> dict[str, int]:
    if reflections is None:
        return {}
    if linear != "householder":
        raise ConfigurationError(
            f"flow.linear={linear} does not use reflections, but flow.reflections={reflections} was given: take "
            "flow.linear=householder or leave flow.reflections out."
        )
    if reflections > max_reflections(dim):
        raise ConfigurationError(
            f"flow.reflections={reflections} is more than the {max_reflections(dim)} that give every rotation of {dim} "
            f"dimensions: take an even number up to {max_reflections(dim)}, or null for {max_reflections(dim)}."
        )
    return {"reflections": reflections}


def _check_memory(linear: str, shape: tuple[int, ...], settings: dict[str, int]) -> None:
    held = 4 * MAPS[linear].numbers_in_training(shape, **settings)
    if held <= MAX_TRAINING_BYTES:
        return
    dim = math.prod(shape)
    others = [
        words
        for words, (smaller, own) in SMALLER_MAPS.items()
        if 4 * smaller.numbers_in_training(shape, **own) <= MAX_TRAINING_BYTES
    ]
    raise ConfigurationError(
        f"flow.linear={linear} for samples of shape {tuple(shape)}, {dim:,} dimensions, holds {held / 2**30:.3g} GiB "
        f"in training for each map, {MAX_TRAINING_BYTES / 2**30:g} GiB is allowed: take {' or '.join(others)}."
    )
