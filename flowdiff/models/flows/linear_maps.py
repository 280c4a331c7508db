"""Invertible linear maps of vectors, z = W x, whose log-determinant needs no determinant.

    rotation      W = (I + A)⁻¹(I − A), A skew       D² numbers       O(D³) per batch
    plu           W = P L U                          2·D² numbers     O(D²) per sample
    householder   W = H_1 … H_K, reflections         K·D numbers      O(K·D) per sample
    kronecker     W = R_1 ⊗ … ⊗ R_m, rotations       Σ nᵢ² numbers    O(D·Σ nᵢ) per sample, D = Π nᵢ

The first two are D×D matrices. The other two never form one and are meant for many dimensions: few reflections change
x by a map of low rank, and a Kronecker product acts on one axis at a time. All but plu are orthogonal: log|det W| = 0
and W⁻¹ = Wᵀ.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.flows.gate import gated

TRAINING_COPIES = 5  # of a parameter: itself, its gradient, Adam's two moments, the weight average


class LinearMap(Flow, ABC):
    """z = W x on (B, D) for an invertible W whose log-determinant costs O(D)."""

    @classmethod
    @abstractmethod
    def chain(cls, shape: tuple[int, ...], n: int, *args: Any, **settings: Any) -> list[LinearMap]:
        """The maps before each of n layers and, if there is one, after the last; together they start as the identity.

        Args:
            shape: shape of one sample; the maps act on its D = prod(shape) numbers.
            n: number of layers, ≥ 1.
            *args: further arguments of the constructor.
            **settings: further arguments of the constructor, by name.
        """

    @staticmethod
    @abstractmethod
    def numbers_in_training(shape: tuple[int, ...], *args: Any, **settings: Any) -> int:
        """How many numbers training holds for one map: TRAINING_COPIES of its parameters and its backward pass."""


class Orthogonal(LinearMap):
    """A W with WᵀW = I: log|det W| = 0 and W⁻¹ = Wᵀ.

    A chain has none after the last layer: a rotation leaves N(0, I) unchanged, so it would not change the density.
    """

    @classmethod
    def chain(cls, shape: tuple[int, ...], n: int, *args: Any, **settings: Any) -> list[LinearMap]:
        return [cls(shape, *args, **settings) for _ in range(n)]

    @abstractmethod
    def rotate(self, x: Tensor) -> Tensor:
        """W x (B, D)."""

    @abstractmethod
    def rotate_back(self, z: Tensor) -> Tensor:
        """Wᵀ z (B, D)."""

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.rotate(x), x.new_zeros(len(x))

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.rotate_back(z), z.new_zeros(len(z))


class Rotation(Orthogonal):
    """The Cayley map of a skew matrix: every rotation without the eigenvalue −1.

    W = (I + A)⁻¹(I − A),  Aᵀ = −A,  A = 0 at the start

    Args:
        shape: shape of one sample, D = prod(shape).

    Source: Cayley, Sur quelques propriétés des déterminants gauches, 1846.
    """

    matrices = ("weight",)

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        dim = math.prod(shape)
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    @staticmethod
    def numbers_in_training(shape: tuple[int, ...]) -> int:
        return (TRAINING_COPIES + 3) * math.prod(shape) ** 2  # I + A, its factors, W

    def matrix(self) -> Tensor:
        """W (D, D)."""
        lower = self.weight.tril(-1)
        A = lower - lower.T
        eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
        return torch.linalg.solve_ex(eye + A, eye - A).result  # I + A is never singular; a check would make a GPU wait

    def rotate(self, x: Tensor) -> Tensor:
        return x @ self.matrix().T

    def rotate_back(self, z: Tensor) -> Tensor:
        return z @ self.matrix()


class Householder(Orthogonal):
    """A product of K reflections; W − I has rank K.

    W = H_1 H_2 … H_K,  H_i = I − 2 v_i v_iᵀ/|v_i|²

    It is computed as W x = x − Vᵀ S⁻¹ V x with the v_i in the rows of V and S = striu(VVᵀ) + ½ diag(VVᵀ): one
    triangular solve of size K×K instead of K products. The v_i start equal in pairs, and H_v H_v = I.

    Args:
        shape: shape of one sample, D = prod(shape).
        reflections: K ≥ 2, even, so that W is a rotation; None: D rounded up to even, which gives every rotation.

    Source: Tomczak, Welling, Improving Variational Auto-Encoders using Householder Flow, 2016; the triangular solve:
    Joffrain et al., Accumulating Householder transformations, revisited, 2006.
    """

    matrices = ("vectors",)

    def __init__(self, shape: tuple[int, ...], reflections: int | None = None):
        super().__init__()
        dim = math.prod(shape)
        pairs = torch.randn((reflections or max_reflections(dim)) // 2, dim)
        self.vectors = nn.Parameter(pairs.repeat_interleave(2, 0))  # (K, D)

    @staticmethod
    def numbers_in_training(shape: tuple[int, ...], reflections: int | None = None) -> int:
        dim = math.prod(shape)
        K = reflections or max_reflections(dim)
        return TRAINING_COPIES * K * dim + K**2  # S

    def rotate(self, x: Tensor) -> Tensor:
        V, S = self.vectors, self._triangle()
        return x - torch.linalg.solve_triangular(S.mT, x @ V.mT, upper=False, left=False) @ V  # rows: xᵀ Vᵀ S⁻ᵀ V

    def rotate_back(self, z: Tensor) -> Tensor:
        V, S = self.vectors, self._triangle()
        return z - torch.linalg.solve_triangular(S, z @ V.mT, upper=True, left=False) @ V

    def _triangle(self) -> Tensor:
        gram = self.vectors @ self.vectors.mT
        return gram.triu(1) + 0.5 * torch.diag_embed(gram.diagonal())


def max_reflections(dim: int) -> int:
    """Number of reflections that give every rotation of `dim` dimensions: dim rounded up to even."""
    return dim + dim % 2


class Kronecker(Orthogonal):
    """A rotation along each axis of the sample, such as the channels, rows and columns of (C, H, W).

    W = R_1 ⊗ … ⊗ R_m

    A vector of D dimensions is viewed as the most nearly square matrix with D = n₁·n₂. Each number of z depends on all
    of x, through Σ nᵢ² weights: these are the separable rotations, which include the cosine transform.

    Args:
        shape: shape of one sample.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.axes = rotation_axes(shape)
        self.turns = nn.ModuleList(Rotation((n,)) for n in self.axes)

    @staticmethod
    def numbers_in_training(shape: tuple[int, ...]) -> int:
        return sum(Rotation.numbers_in_training((n,)) for n in rotation_axes(shape))

    def rotate(self, x: Tensor) -> Tensor:
        return self._along_each(Rotation.rotate, x)

    def rotate_back(self, z: Tensor) -> Tensor:
        return self._along_each(Rotation.rotate_back, z)

    def _along_each(self, direction: Callable[[Rotation, Tensor], Tensor], x: Tensor) -> Tensor:
        grid = x.reshape(len(x), *self.axes)  # (B, n_1, …, n_m)
        for i, turn in enumerate(self.turns, start=1):  # in any order, they commute
            assert isinstance(turn, Rotation)  # nn.ModuleList does not keep the type of its elements
            grid = direction(turn, grid.movedim(i, -1)).movedim(-1, i)
        return grid.reshape(x.shape)


def rotation_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that Kronecker rotates: those of the shape longer than one; for a vector, two factors of D."""
    if len(shape) == 1:
        (dim,) = shape
        largest = next(n for n in range(math.isqrt(dim), 0, -1) if dim % n == 0)
        shape = (largest, dim // largest)
    return tuple(n for n in shape if n > 1)


class PLU(LinearMap):
    """A fixed permutation times triangular factors; W cannot become singular or change orientation.

    W = P L U,  L unit lower triangular, U upper triangular with the diagonal e^s,  log|det W| = Σ s

    The gate multiplies L − I, s and the rest of U, so that W is another matrix at each noise level; P is orthogonal and
    stays. The permutations of a chain are random except the one after the last layer, which undoes the others. The last
    dimension of x (B, …, D) is transformed, at every place of the others.

    Args:
        dim: D.
        permutation: (D,) integers, (P x)_i = x_{permutation_i}.

    Source: Kingma, Dhariwal, Glow: Generative Flow with Invertible 1×1 Convolutions, 2018.
    """

    matrices = ("lower", "upper")
    permutation: Tensor

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
    def numbers_in_training(shape: tuple[int, ...]) -> int:
        return (2 * TRAINING_COPIES + 2) * math.prod(shape) ** 2  # L, U

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        s = gated(self.log_diagonal.expand(len(x), -1), cond)  # (B, D)
        at_every_place = s.reshape(len(x), *(1,) * (x.ndim - 2), s.shape[1])
        y = x * at_every_place.exp() + gated(x @ self.upper.triu(1).T, cond)  # U x
        z = y + gated(y @ self.lower.tril(-1).T, cond)  # L y
        return z[..., self.permutation], self._log_det(s, x)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        s = gated(self.log_diagonal.expand(len(z), -1), cond)
        y = z[..., self.permutation.argsort()]
        gate = y.new_ones(len(y)) if cond.gate is None else cond.gate
        if gate.requires_grad:  # each sample is solved with its own γ, so that σ can be differentiated
            groups = list(torch.arange(len(y), device=y.device).split(1))
        else:  # samples with the same γ have the same W; in sampling all of them
            groups = [(gate == value).nonzero()[:, 0] for value in gate.unique()]
        x = torch.cat([self._solve(y[rows], gate[rows[0]]) for rows in groups])
        return x[torch.cat(groups).argsort()], -self._log_det(s, z)

    def _solve(self, y: Tensor, gate: Tensor) -> Tensor:
        """U⁻¹ L⁻¹ y for samples y (b, …, D) with one γ² = gate."""
        columns = y.flatten(0, -2).T
        columns = torch.linalg.solve_triangular(gate * self.lower, columns, upper=False, unitriangular=True)
        U = gate * self.upper.triu(1) + torch.diag(torch.exp(gate * self.log_diagonal))
        return torch.linalg.solve_triangular(U, columns, upper=True).T.reshape(y.shape)

    @staticmethod
    def _log_det(s: Tensor, x: Tensor) -> Tensor:
        """log|det W| over all places of x (B, …, D), (B,)."""
        return math.prod(x.shape[1:-1]) * s.sum(1)
