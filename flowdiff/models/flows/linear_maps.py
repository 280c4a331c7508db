"""Invertible linear maps of vectors, z = W x, whose log-determinant costs no determinant.

    rotation      W = (I + A)⁻¹(I − A), A skew       D² numbers       O(D³) a batch
    plu           W = P L U                          2·D² numbers     O(D³) a batch
    householder   W = H_1 … H_K, reflections         K·D numbers      O(K·D) a sample
    kronecker     W = R_1 ⊗ … ⊗ R_m, rotations       Σ nᵢ² numbers    O(D·Σ nᵢ) a sample, D = Π nᵢ

The first two are matrices of D×D. The other two never form one: few reflections, a change of low rank, and a Kronecker
product are for many dimensions. All but plu are orthogonal: log|det W| = 0 and W⁻¹ = Wᵀ.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow

COPIES = 5  # that training makes of a parameter: itself, its gradient, Adam's two moments, the weight average


class LinearMap(Flow, ABC):
    """z = W x on (B, D) for an invertible W whose log-determinant is known in O(D)."""

    @classmethod
    @abstractmethod
    def chain(cls, shape: tuple[int, ...], n: int, **settings: int) -> list[LinearMap]:
        """The maps before each of n layers, and the one after the last; together they start as the identity.

        shape: of a sample, whose D = prod(shape) numbers they map. settings: of the class's own.
        """

    @staticmethod
    @abstractmethod
    def held(shape: tuple[int, ...], **settings: int) -> int:
        """How many numbers training holds for one map: COPIES of its parameters and what its backward pass needs."""


class Orthogonal(LinearMap):
    """A W with WᵀW = I: log|det W| = 0 and W⁻¹ = Wᵀ.

    A chain has none after the last layer: N(0, I) is the same turned or not, so it could not change the density.
    """

    @classmethod
    def chain(cls, shape: tuple[int, ...], n: int, **settings: int) -> list[LinearMap]:
        return [cls(shape, **settings) for _ in range(n)]

    @abstractmethod
    def turned(self, x: Tensor) -> Tensor:
        """W x (B, D)."""

    @abstractmethod
    def turned_back(self, z: Tensor) -> Tensor:
        """Wᵀ z (B, D)."""

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.turned(x), x.new_zeros(len(x))

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.turned_back(z), z.new_zeros(len(z))


class Rotation(Orthogonal):
    """W = (I + A)⁻¹(I − A) with A skew: the Cayley map, every rotation without the eigenvalue −1 (Cayley, 1846)."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        dim = math.prod(shape)
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    @staticmethod
    def held(shape: tuple[int, ...]) -> int:
        return (COPIES + 3) * math.prod(shape) ** 2  # I + A, its factors, W

    def matrix(self) -> Tensor:
        """W (D, D)."""
        lower = self.weight.tril(-1)
        A = lower - lower.T
        eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
        return torch.linalg.solve(eye + A, eye - A)

    def turned(self, x: Tensor) -> Tensor:
        return x @ self.matrix().T

    def turned_back(self, z: Tensor) -> Tensor:
        return z @ self.matrix()


class Householder(Orthogonal):
    """W = H_1 H_2 … H_K, H_i = I − 2 v_i v_iᵀ/|v_i|² (Tomczak & Welling, 2016).

    reflections: K ≥ 2, even, so that W is a rotation; None: D rounded up to even, which makes every one. Applied as
    W x = x − Vᵀ S⁻¹ V x with the v_i in the rows of V and S = striu(VVᵀ) + ½ diag(VVᵀ), one triangular solve of K×K in
    place of K products (Joffrain et al., 2006); W − I has rank K. The v_i start equal in pairs, and H_v H_v = I.
    """

    def __init__(self, shape: tuple[int, ...], reflections: int | None = None):
        super().__init__()
        dim = math.prod(shape)
        pairs = torch.randn((reflections or enough(dim)) // 2, dim)
        self.vectors = nn.Parameter(pairs.repeat_interleave(2, 0))  # (K, D)

    @staticmethod
    def held(shape: tuple[int, ...], reflections: int | None = None) -> int:
        dim = math.prod(shape)
        K = reflections or enough(dim)
        return COPIES * K * dim + K**2  # S

    def turned(self, x: Tensor) -> Tensor:
        V, S = self.vectors, self._triangle()
        return x - torch.linalg.solve_triangular(S.mT, x @ V.mT, upper=False, left=False) @ V  # rows: xᵀ Vᵀ S⁻ᵀ V

    def turned_back(self, z: Tensor) -> Tensor:
        V, S = self.vectors, self._triangle()
        return z - torch.linalg.solve_triangular(S, z @ V.mT, upper=True, left=False) @ V

    def _triangle(self) -> Tensor:
        gram = self.vectors @ self.vectors.mT
        return gram.triu(1) + 0.5 * torch.diag_embed(gram.diagonal())


def enough(dim: int) -> int:
    """How many reflections make every rotation of `dim` dimensions: dim, rounded up to even."""
    return dim + dim % 2


class Kronecker(Orthogonal):
    """W = R_1 ⊗ … ⊗ R_m: a rotation along each axis of the sample, e.g. of channels, rows and columns of (C, H, W).

    A vector of D dimensions is seen as a matrix of the most nearly square D = n₁·n₂. Each number of z depends on all of
    x, through Σ nᵢ² weights: W is the separable part of all rotations, to which the cosine transform belongs, too.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.axes = axes(shape)
        self.turns = nn.ModuleList(Rotation((n,)) for n in self.axes)

    @staticmethod
    def held(shape: tuple[int, ...]) -> int:
        return sum(Rotation.held((n,)) for n in axes(shape))

    def turned(self, x: Tensor) -> Tensor:
        return self._along_each(Rotation.turned, x)

    def turned_back(self, z: Tensor) -> Tensor:
        return self._along_each(Rotation.turned_back, z)

    def _along_each(self, direction: Callable[[Rotation, Tensor], Tensor], x: Tensor) -> Tensor:
        grid = x.reshape(len(x), *self.axes)  # (B, n_1, …, n_m)
        for i, turn in enumerate(self.turns, start=1):  # they commute
            grid = direction(turn, grid.movedim(i, -1)).movedim(-1, i)
        return grid.reshape(x.shape)


def axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes a sample is turned along: those of its shape that are longer than one, of a vector two factors of D."""
    if len(shape) == 1:
        (dim,) = shape
        most = next(n for n in range(math.isqrt(dim), 0, -1) if dim % n == 0)
        shape = (most, dim // most)
    return tuple(n for n in shape if n > 1)


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
    def chain(cls, shape: tuple[int, ...], n: int) -> list[LinearMap]:
        dim = math.prod(shape)
        permutations = [torch.randperm(dim) for _ in range(n)]
        total = torch.arange(dim)
        for permutation in permutations:
            total = total[permutation]
        return [cls(dim, permutation) for permutation in [*permutations, total.argsort()]]

    @staticmethod
    def held(shape: tuple[int, ...]) -> int:
        return (2 * COPIES + 3) * math.prod(shape) ** 2  # L, U, W

    def matrix(self) -> Tensor:
        """W (D, D)."""
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
