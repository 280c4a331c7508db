"""The linear–activation flow: invertible linear maps with conditioned, invertible activations between them.

One layer is  z ← W z,  z ← e^g·z + b,  z ← z + w·r(k·z)/k,  and after the last one  z ← W z  (unless W is orthogonal),
where r is the bend of the chosen activation (flowdiff/models/activations.py) and g, b, w, k, one number per dimension each,
are a linear map of the embedding of (¼ ln σ, c), which starts at zero: with W = I the flow starts as the identity,
and nothing but (σ, c) decides how far it leaves it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.activations import MAX_STRENGTH, Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flattened, Flow, Sequential
from flowdiff.models.flows.linear_maps import PLU, Householder, Kronecker, LinearMap, Rotation, enough
from flowdiff.models.nn.inject import zero_init
from flowdiff.registry import register

MAPS: dict[str, type[LinearMap]] = {
    "rotation": Rotation,
    "plu": PLU,
    "householder": Householder,
    "kronecker": Kronecker,
}
MOST_HELD = 2**30  # bytes that one linear map may hold in training
# What to take where a map would hold more.
SMALLER: dict[str, tuple[type[LinearMap], dict[str, int]]] = {
    "flow.linear=kronecker": (Kronecker, {}),
    "flow.linear=householder flow.reflections=64": (Householder, {"reflections": 64}),
}


@register("flow", "linear_activation")
class LinearActivation(Flow):
    """z = W_n a_{n−1}(… W_1 a_0(W_0 x)), a_i the (σ, c)-conditioned affine map and activation.

    x (B, …) of any shape, seen as D = prod(shape) dimensions. n_flows ≥ 1 layers. `linear` is W, and `reflections` how
    many make a `householder`, even, null: D (flowdiff/models/flows/linear_maps.py). |g| < log_scale_bound, k within
    e^{±log_sharpness_bound}, |w| < 0.95, so the slope of every activation stays in [0.05, 1.95]. checkpoint: compute
    each map again in the backward pass (flowdiff/models/nn/recompute.py). As smooth as its activation: C^∞ for softplus, tanh,
    swish.
    Raises ConfigurationError for a linear map that would hold more than 1 GiB in training, before anything is
    allocated, and for reflections that another map does not have or that are more than make every rotation.
    """

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
        settings = _own_settings(linear, reflections, dim)
        _check_size(linear, shape, settings)
        maps = MAPS[linear].chain(shape, n_flows, **settings)
        layers: list[Flow] = []
        for i in range(n_flows):
            layers += [maps[i], ConditionedActivation(dim, embed_dim, activation, log_scale_bound, log_sharpness_bound)]
        self.flow = Flattened(Sequential([*layers, *maps[n_flows:]], checkpoint))

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # all of it acts on x itself
            return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            return self.flow.inverse(z, cond)


class ConditionedActivation(Flow):
    """y = e^g·x + b, then z = y + w·r(k·y)/k, elementwise on (B, D), with (g, b, w, k) from the condition's vector.

    g = c·tanh(·/c), b free, w = 0.95·tanh(·), k = exp(c_k·tanh(·)); the linear map that gives them starts at zero.
    """

    def __init__(
        self,
        dim: int,
        embed_dim: int,
        activation: Activation,
        log_scale_bound: float,
        log_sharpness_bound: float,
    ):
        super().__init__()
        self.activation = activation
        self.log_scale_bound = log_scale_bound
        self.log_sharpness_bound = log_sharpness_bound
        self.steer = zero_init(nn.Linear(embed_dim, 4 * dim))

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        g, b, w, k = self._steered(cond)
        z, log_slope = self.activation.bijection(torch.addcmul(b, x, torch.exp(g)), w, k)
        return z, (g + log_slope).sum(1)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        g, b, w, k = self._steered(cond)
        y, log_slope = self.activation.inverse(z, w, k)
        return (y - b) * torch.exp(-g), (log_slope - g).sum(1)

    def _steered(self, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g, b, w, k = self.steer(cond.vector).chunk(4, dim=1)  # (B, D) each
        g = self.log_scale_bound * torch.tanh(g / self.log_scale_bound)
        return g, b, MAX_STRENGTH * torch.tanh(w), torch.exp(self.log_sharpness_bound * torch.tanh(k))


def _own_settings(linear: str, reflections: int | None, dim: int) -> dict[str, int]:
    if reflections is None:
        return {}
    if linear != "householder":
        raise ConfigurationError(
            f"flow.linear={linear} has no reflections, and flow.reflections={reflections} was given: take "
            "flow.linear=householder or leave flow.reflections out."
        )
    if reflections > enough(dim):
        raise ConfigurationError(
            f"flow.reflections={reflections} is more than the {enough(dim)} that make every rotation of {dim} "
            f"dimensions: take an even number up to {enough(dim)}, or null for as many."
        )
    return {"reflections": reflections}


def _check_size(linear: str, shape: tuple[int, ...], settings: dict[str, int]) -> None:
    held = 4 * MAPS[linear].held(shape, **settings)
    if held <= MOST_HELD:
        return
    dim = math.prod(shape)
    others = [given for given, (kind, own) in SMALLER.items() if 4 * kind.held(shape, **own) <= MOST_HELD]
    raise ConfigurationError(
        f"flow.linear={linear} of samples of shape {tuple(shape)}, {dim:,} dimensions, holds {held / 2**30:.3g} GiB in "
        f"training for each map, allowed is {MOST_HELD / 2**30:g} GiB: take {' or '.join(others)}."
    )
