"""The gate: a flow's own preconditioning. It says how far a flow may be from the identity at each noise level.

    γ²(σ) = v/(v + σ²),  v the mean variance of the data: 1 without noise, v/σ² at high noise

Behind its whitening a score flow has y, which is standard at every σ. With a gate its flow f works on u = γ·y, its
parameters θ are multiplied by γ², and the base point is z = u′/γ:

    u = γ·y,   u′ = f(u; γ²·θ),   z = u′/γ,   θ = 0 the identity

So of what f adds to y a constant counts by γ, what is linear in y by γ², a bend y² by γ³, and so on. These are the
orders of what there is to learn. In one dimension, with data of variance v and of cumulants κ_k once they are scaled to
variance 1, y is γ times such a number plus √(1 − γ²) times noise. Noise has no cumulants beyond the second, so those of
y are κ_k·γᵏ, and with the Hermite polynomials He_k

    log p(y) = log N(y; 0, 1) + Σ_k κ_k·γᵏ·He_k(y)/k! + products of several κ,

where κ_1 is the mean and κ_2 the error of the variance that the whitening left. γᵏ·He_k(y) is a polynomial in u = γ·y
and γ². These are the factors of a raw network: γ² is c_skip, u is c_skip·x/√v and σ·γ is c_out.

Then θ may be of order 1 at every σ. The score is the gradient of log p, D = x + σ²·s, and whitening divides x by about
σ at high noise, so that an error δ of log p(y) moves D by about σ·∂δ/∂y. f moves y by O(γ) only, which makes that
O(σ·γ) = O(√v): *D stays within a bounded multiple of the data's deviation of the Wiener filter at every σ, whatever the
parameters are*. Without a gate an error ε of a shift moves D by σ·ε, and training sees no σ as large as σ_max.

θ depends on σ through an embedding, and between the noise levels of training and σ_max an embedding of ln σ may do
anything. With a gate it is that of ln σ̃, where 1/σ̃² = 1/σ² + 1/V and V = D·v is the variance of all D numbers of a
sample together. For σ² ≫ V nothing of a sample is left in x, θ has its limit, and so has σ̃.

The gate bounds the distance to the Wiener filter. What D is at σ = ∞ depends on two means. That of all data is
measured: the whitening removes it, because training sees next to no σ at which it could be learned. That of a class is
learned: it is a shift of each number of y, of order γ. Nets whose weights are shared among the places of an image see
u = 0 everywhere and shift all pixels alike. Flows of such nets declare `shares_weights`, and a score flow with a gate
puts a shift by e in front of them (flowdiff/models/flows/shift.py).

The whitening has to make y standard at high noise. With whitening=identity y is x, of order σ, and only a flow far from
the identity scales it to N(0, I): there is no gate then. There is none with a flow that does not declare `takes_gate`.
"""

from __future__ import annotations

from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.shapes import append_dims


def gate(variance: Tensor, sigma: Tensor) -> Tensor:
    """γ² = v/(v + σ²), (B,), for the variance v ≥ 0 of the data, a number, and noise levels sigma (B,) > 0."""
    return variance / (variance + sigma**2)


def log_saturating(variance: Tensor, sigma: Tensor) -> Tensor:
    """ln σ̃ = −½·ln(1/σ² + 1/V), (B,), for the total variance V > 0 of a sample and noise levels sigma (B,) > 0."""
    return -0.5 * (sigma**-2 + 1 / variance).log()


def gated(parameters: Tensor, cond: Conditioning) -> Tensor:
    """γ²·θ; θ itself if the condition has no gate.

    A flow calls it once on all parameters of a map, before it bounds them.

    Args:
        parameters: θ (B, …), 0 where the map is the identity.
        cond: the condition of the B samples, with which the flow was called.
    """
    return parameters if cond.gate is None else parameters * append_dims(cond.gate, parameters.ndim)
