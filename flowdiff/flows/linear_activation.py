"""The linear–activation flow: invertible linear maps with conditioned, invertible activations between them.

One layer is  z ← W z,  z ← e^g·z + b,  z ← z + w·r(k·z)/k,  and after the last one  z ← W z  (unless W is orthogonal),
where r is the bend of the chosen activation (flowdiff/activations.py) and g, b, w, k, one number per dimension each,
are a linear map of the embedding of (¼ ln σ, c), which starts at zero: with W = I the flow starts as the identity,
and nothing but (σ, c) decides how far it leaves it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.activations import MAX_STRENGTH, Activation
from flowdiff.conditioning import Conditioning
from flowdiff.flows.base import Flattened, Flow, Sequential
from flowdiff.nn.inject import zero_init
from flowdiff.registry import register


@register("flow", "linear_activation")
class LinearActivation(Flow):
    """z = W_n a_{n−1}(… W_1 a_0(W_0 x)), a_i the (σ, c)-conditioned affine map and activation.

    x (B, …) of any shape, seen as D = prod(shape) dimensions. n_flows ≥ 1 layers. `linear` is W: `rotation` (Cayley
    map of a skew matrix, log-det 0), `plu` (permutation and triangular factors, log-det in O(D)), `householder`
    (product of reflections, log-det 0). |g| < log_scale_bound, k within e^{±log_sharpness_bound}, |w| < 0.95, so the
    slope of every activation stays in [0.05, 1.95]. checkpoint: compute each map again in the backward pass
    (flowdiff/nn/recompute.py). As smooth as its activation: C^∞ for softplus, tanh, swish.
    """

    inverse_by = "the activation's: closed form or Newton's method"

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        *,
        n_flows: PositiveInt,
        linear: Literal["rotation", "plu", "householder"],
        log_scale_bound: PositiveFloat,
        log_sharpness_bound: PositiveFloat,
        checkpoint: bool,
    ):
        super().__init__()
        dim = math.prod(shape)
        maps = {"rotation": Rotation, "plu": PLU, "householder": Householder}[linear].chain(dim, n_flows)
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


class LinearMap(Flow, ABC):
    """z = W x on (B, D) for an invertible W whose log-determinant is known in O(D)."""

    @classmethod
    @abstractmethod
    def chain(cls, dim: int, n: int) -> list[LinearMap]:
        """The maps before each of n layers, and the one after the last; together they start as the identity."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """W (D, D)."""


class Orthogonal(LinearMap):
    """A W with WᵀW = I: log|det W| = 0 and W⁻¹ = Wᵀ.

    A chain has none after the last layer: N(0, I) is the same turned or not, so it could not change the density.
    """

    @classmethod
    def chain(cls, dim: int, n: int) -> list[LinearMap]:
        return [cls(dim) for _ in range(n)]

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return x @ self.matrix().T, x.new_zeros(len(x))

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return z @ self.matrix(), z.new_zeros(len(z))


class Rotation(Orthogonal):
    """W = (I + A)⁻¹(I − A) with A skew: the Cayley map, every rotation without the eigenvalue −1 (Cayley, 1846)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def matrix(self) -> Tensor:
        lower = self.weight.tril(-1)
        A = lower - lower.T
        eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
        return torch.linalg.solve(eye + A, eye - A)


class Householder(Orthogonal):
    """W = H_1 H_2 … H_K, H_i = I − 2 v_i v_iᵀ/|v_i|², K = D rounded up to even (Tomczak & Welling, 2016).

    Computed as I − V S⁻¹ Vᵀ with S = striu(VᵀV) + ½ diag(VᵀV), one triangular solve instead of K products
    (Joffrain et al., 2006). The v_i start equal in pairs, and H_v H_v = I.
    """

    def __init__(self, dim: int):
        super().__init__()
        pairs = torch.randn((dim + 1) // 2, dim)
        self.vectors = nn.Parameter(pairs.repeat_interleave(2, 0))  # (K, D)

    def matrix(self) -> Tensor:
        V = self.vectors
        gram = V @ V.T
        S = gram.triu(1) + 0.5 * torch.diag_embed(gram.diagonal())
        eye = torch.eye(V.shape[1], dtype=V.dtype, device=V.device)
        return eye - V.T @ torch.linalg.solve_triangular(S, V, upper=True)


class PLU(LinearMap):
    """W = P L U: P a fixed permutation, L unit lower and U upper triangular (Kingma & Dhariwal, 2018).

    log|det W| = Σ s with U's diagonal e^s, so W can neither become singular nor change orientation. The permutations
    of a chain are random but for the last, after the last layer, which undoes the others.
    """

    def __init__(self, dim: int, permutation: Tensor):
        super().__init__()
        self.register_buffer("permutation", permutation)  # (D,): (P x)_i = x_{permutation_i}
        self.lower = nn.Parameter(torch.zeros(dim, dim))
        self.upper = nn.Parameter(torch.zeros(dim, dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))

    @classmethod
    def chain(cls, dim: int, n: int) -> list[LinearMap]:
        permutations = [torch.randperm(dim) for _ in range(n)]
        total = torch.arange(dim)
        for permutation in permutations:
            total = total[permutation]
        return [cls(dim, permutation) for permutation in [*permutations, total.argsort()]]

    def matrix(self) -> Tensor:
        L, U = self._factors()
        return (L @ U)[self.permutation]

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return x @ self.matrix().T, self.log_diagonal.sum().expand(len(x))

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        L, U = self._factors()
        x = z[:, self.permutation.argsort()].T
        x = torch.linalg.solve_triangular(L, x, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(U, x, upper=True)
        return x.T, -self.log_diagonal.sum().expand(len(z))

    def _factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(self.lower), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + torch.diag(torch.exp(self.log_diagonal))
