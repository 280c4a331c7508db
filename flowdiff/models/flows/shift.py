"""The shift of each number of a sample by the condition, in front of flows whose nets cannot tell the numbers apart.

At high noise all that is left of a class is its mean, a shift of each number of y (flowdiff/models/flows/gate.py), and
the input u = γ·y of a flow is 0. A net of convolutions then gives the same shift to all pixels, up to the border, so
that it cannot contain that mean. The means of the classes are measured, as the whitening's mean of all data is, because
training sees next to no noise level at which they could be learned. What else the condition shifts, such as the words
of a caption, is a linear map of e, which learns as fast as a net of vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.gate import gated
from flowdiff.models.flows.guided import guided_forward
from flowdiff.models.flows.steered import Steered
from flowdiff.shapes import append_dims


class Shift(Steered):
    """A shift of each number of x by the class and by the embedding e.

    z = x + γ²·(W e + b − m_c),  m_c = (μ_c − μ)/√v,  log|det| = 0,  W and b 0 at the start

    μ_c is the mean of class c, μ that of the whitening and v the variance of the gate. Behind whitening=isotropic, with
    y = (x − μ)/√(σ² + v), an untrained flow is then N(μ_c, (σ² + v)·I). m_c = 0 without a class, and before `fit`.

    Args:
        shape: shape of one sample; W has embed_dim·prod(shape) entries.
        embed_dim: width of e.
        num_classes: number of classes; None: the data have none.
    """

    means: Tensor  # m (C, *shape)

    takes_gate = True
    guidance_orders = ("all",)

    def __init__(self, shape: tuple[int, ...], embed_dim: int, num_classes: int | None = None):
        super().__init__(embed_dim, math.prod(shape))
        self.shape = tuple(shape)
        self.register_buffer("means", torch.zeros(num_classes or 0, *shape))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], mean: Tensor, variance: Tensor) -> None:
        """Measure m from batches of clean training data, (B, *shape), with labels (B,); a class without data has m = 0.

        mean: μ, shaped like a sample.
        variance: v > 0, a number.
        """
        totals, counts = torch.zeros_like(self.means, dtype=torch.float64), self.means.new_zeros(len(self.means))
        for x, label in batches:
            totals.index_add_(0, label.to(totals.device), x.to(totals.device) - mean.double())
            counts += label.to(counts.device).bincount(minlength=len(counts))
        count = counts.double().clamp(min=1).view(-1, *[1] * len(self.shape))
        self.means.copy_(totals / count / variance.double().sqrt())

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return x + self._shift(cond), x.new_zeros(len(x))

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        shift = self._shift(cond)
        if cond.guidance is not None:
            _, shift = guided_forward(torch.zeros_like(shift), shift, cond.guidance[:, 1])
        return z - shift, z.new_zeros(len(z))

    def _shift(self, cond: Conditioning) -> Tensor:
        shift = self.steered(cond).unflatten(1, self.shape)
        if cond.label is not None and len(self.means):
            known = append_dims(cond.label >= 0, shift.ndim)
            shift = shift - known * self.means[cond.label.clamp(min=0)]
        return gated(shift, cond)
