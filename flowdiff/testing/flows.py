"""The laws of a flow.

`check_flow` tries all of them on copies of a flow. The single laws take a flow in float64 and in eval mode, samples
x (B, …) in float64 (`inputs.samples`) and their condition (`inputs.condition`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.flows.gate import gate
from flowdiff.models.nn import control
from flowdiff.models.nn.control import HintPart
from flowdiff.shapes import append_dims, sum_except_batch
from flowdiff.testing import densities
from flowdiff.testing.compare import require, require_at_most, require_close, require_finite, require_like
from flowdiff.testing.densities import jacobians
from flowdiff.testing.inputs import condition, in_dtype, perturb, repeated, samples

TOKEN_DIM = 3  # width of the condition's tokens in the checks
MakeFlow: TypeAlias = Callable[[int], Flow]


def check_flow(flow: Flow | MakeFlow, shape: tuple[int, ...], embed_dim: int = 16, *, gain: float = 0.5) -> None:
    """Hold a flow to every law of a flow, as it is and with random parameters.

    Log-determinants equal to slogdet of the Jacobian; round trip; ∫p = 1 (for shape (2,)); score = gradient of log p,
    also by finite differences, and itself differentiable; ∂s/∂x symmetric; log p and score finite up to ‖x‖ = 1e3;
    samples of a batch independent; every parameter learns; the identity at the start; if it is gated, D near the
    Wiener filter at every σ; if its nets take controls, a flow for every hint. What the flow declares counts:
    `identity_at_start`, `takes_gate`, `smooth`, `twice_differentiable` and `inverse_error`.

    Args:
        flow: the flow, which is not changed; or a function token_dim → flow, whose flows are tried without condition
            tokens (token_dim = 0) and with them, and whose state dict has to determine the flow. A flow itself is
            tried without tokens.
        shape: shape of one sample; a few dimensions are enough, because Jacobians are computed. (2,) includes ∫p = 1.
        embed_dim: width of the embedding, cond.vector (B, embed_dim), for which the flow was built.
        gain: size of the random numbers that are added to the parameters, relative to 1/√fan_in. Lower it for a deep
            flow whose random parameters would make it ill-conditioned.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    if isinstance(flow, Flow):
        _check(flow, shape, embed_dim, 0, gain)
        return
    for token_dim in (0, TOKEN_DIM):
        made, other = flow(token_dim), flow(token_dim)
        _check(made, shape, embed_dim, token_dim, gain)
        x, cond = samples(4, shape), condition(4, embed_dim, token_dim)
        state_dict_is_complete(perturb(_copy(made), gain), _copy(other), x, cond)


def _check(flow: Flow, shape: tuple[int, ...], embed_dim: int, token_dim: int, gain: float) -> None:
    start, far = _copy(flow), perturb(_copy(flow), gain)
    x, cond = samples(4, shape), condition(4, embed_dim, token_dim)
    if flow.identity_at_start:
        starts_as_the_identity(start, x, cond)
    every_parameter_learns(start, samples(8, shape), condition(8, embed_dim, token_dim))
    is_a_flow_for_every_hint(far, x, cond, gain)
    for state in (start, far):
        log_det_is_exact(state, x, cond)
        round_trip(state, x, cond)
        # A few hundred roundings, because a flow may be deep.
        round_trip_in_float32(state, samples(8, shape), condition(8, embed_dim, token_dim), rounding=4e-5)
        samples_of_a_batch_are_independent(state, x[:2], condition(2, embed_dim, token_dim))
        no_gate_is_a_gate_of_one(state, x, cond)
        if flow.takes_gate:
            stays_near_the_wiener_filter(state, samples(16, shape, scale=1.0), condition(16, embed_dim, token_dim))
        for dtype in (torch.float32, torch.float64):
            finite_far_out(state, samples(12, shape), condition(12, embed_dim, token_dim), dtype)
        if shape == (2,):
            density_integrates_to_one(state, condition(3, embed_dim, token_dim)[torch.tensor([1])])
        if flow.twice_differentiable:
            score_is_gradient(state, x[:2], condition(2, embed_dim, token_dim))
            score_is_differentiable(state, x[:2], condition(2, embed_dim, token_dim))
            score_jacobian_is_symmetric(state, x[:2], condition(2, embed_dim, token_dim))


def log_density(flow: Flow, x: Tensor, cond: Conditioning) -> Tensor:
    """log N(f(x); 0, I) + log|det ∂f/∂x| in nats, (B,)."""
    z, logdet = flow(x, cond)
    return logdet - 0.5 * z.flatten(1).square().sum(1) - 0.5 * z[0].numel() * math.log(2 * math.pi)


def starts_as_the_identity(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """A flow with identity_at_start is the identity when it is built."""
    z, logdet = flow(x, cond)
    law = "a flow with identity_at_start starts as the identity"
    require_close(z, x, f"{law} (forward(x) = x)", atol=1e-12)  # a product of rotations rounds
    require_close(logdet, torch.zeros_like(logdet), f"{law} (log-determinant 0)", atol=1e-12)


def is_a_flow_for_every_hint(flow: Flow, x: Tensor, cond: Conditioning, gain: float = 0.5) -> None:
    """With a control at its start a flow is what it was, bit for bit, and far from it a flow for random hints.

    Nothing is tried of a flow none of whose nets takes a control (flowdiff/models/nn/control.py).
    """
    sides = (x.shape[2], x.shape[3]) if x.ndim == 4 else (2, 2)
    controlled = copy.deepcopy(flow)
    if not control.attach(controlled, HintPart(0, (1, *sides))):
        return
    generator = torch.Generator().manual_seed(7)
    hint = torch.rand((len(x), 1, *sides), generator=generator).to(x) * 2 - 1
    hinted = replace(cond, hint=hint)
    with torch.no_grad():
        for direction in ("forward", "inverse"):
            pairs = zip(getattr(flow, direction)(x, cond), getattr(controlled, direction)(x, hinted), strict=True)
            same = all(torch.equal(right, found) for right, found in pairs)
            require(same, f"{direction} with a new control is that of the flow", "they differ; a residual is not 0")
    for one in control.controls(controlled):
        perturb(one, gain)
    moved = controlled(x, hinted)[0] - controlled(x, replace(cond, hint=-hint))[0]
    require(bool(moved.abs().max() > 0), "a flow with a control depends on the hint", "z is the same for other hints")
    log_det_is_exact(controlled, x, hinted)
    round_trip(controlled, x, hinted)
    samples_of_a_batch_are_independent(controlled, x[:2], hinted[torch.arange(2)])


def no_gate_is_a_gate_of_one(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """Without a gate a flow is what it is with γ = 1."""
    for name, direction in (("forward", flow.forward), ("inverse", flow.inverse)):
        without, one = (direction(x, replace(cond, gate=gate)) for gate in (None, torch.ones(len(x)).to(x)))
        for found, right in zip(one, without, strict=True):
            require_close(found, right, f"{name} with γ = 1 is {name} without a gate", rtol=1e-9, atol=_tolerance(flow))


def stays_near_the_wiener_filter(flow: Flow, y: Tensor, cond: Conditioning, *, limit: float = 1e3) -> None:
    """The distance of D to the Wiener filter is bounded, and does not grow by a tenth from σ = 1e2 to 1e4.

    It is ‖D − Wiener‖ over the data's deviation √v, root mean square, of a score flow with this flow: σ²·A_σ/√v times
    the difference of ∇ log p(y) from −y, and A_σ is 1/√(v + σ²).

    Args:
        flow: the flow, which declares `takes_gate`; best with random parameters.
        y: standard normal samples (B, …), as a whitening gives them.
        cond: their condition, whose gate is replaced.
        limit: largest distance, for σ from 1 to 1e4 in units of √v.
    """
    distances = wiener_distances(flow, y, cond)
    found = ", ".join(f"{distance:.3g}" for distance in distances)
    require(
        max(distances) <= limit and distances[-1] <= 1.1 * distances[2] + 1e-6,
        "the distance of D to the Wiener filter is bounded as σ grows",
        f"for σ = 1, 10, 1e2, 1e3, 1e4 it is {found} deviations of the data, where up to {limit:g} and no growth from "
        "1e2 on are allowed; multiply the parameters by the gate with flowdiff.models.flows.gate.gated",
    )


def wiener_distances(flow: Flow, y: Tensor, cond: Conditioning) -> list[float]:
    """‖D − Wiener‖/√v at σ = 1, 10, 1e2, 1e3, 1e4 in units of √v; see `stays_near_the_wiener_filter`."""
    distances = []
    for sigma in (1.0, 10.0, 1e2, 1e3, 1e4):
        square = gate(torch.ones(1, dtype=y.dtype), torch.full((len(y),), sigma, dtype=y.dtype))
        gamma = append_dims(square.sqrt(), y.ndim)
        inner = y.detach().requires_grad_()
        u, logdet = flow(gamma * inner, replace(cond, gate=square))
        log_p = logdet - 0.5 * sum_except_batch((u / gamma) ** 2)
        (score,) = torch.autograd.grad(log_p.sum(), inner)
        distances.append(float((score + y).square().mean().sqrt() * sigma**2 / (1 + sigma**2) ** 0.5))
    return distances


def round_trip(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """inverse(forward(x)) = x = forward(inverse(x)), and the log-determinants of both directions cancel."""
    z, logdet = flow(x, cond)
    back, inverse_logdet = flow.inverse(z, cond)
    require_like(z, x, "forward returns z shaped like x")
    require_like(logdet, x.flatten(1)[:, 0], "forward returns one log-determinant for each sample")
    require_like(inverse_logdet, logdet, "inverse returns one log-determinant for each sample")
    tolerance = _tolerance(flow)
    require_close(back, x, "inverse(forward(x)) = x", rtol=1e-8, atol=tolerance)
    law = "the log-determinants of both directions cancel"
    require_close(inverse_logdet, -logdet, law, rtol=1e-8, atol=tolerance)
    there, _ = flow.inverse(x, cond)  # any point is a valid z
    require_close(flow(there, cond)[0], x, "forward(inverse(z)) = z", rtol=1e-8, atol=tolerance)


def log_det_is_exact(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """The log-determinant of each direction is log|det| of its Jacobian, which autograd finds."""
    z, logdet, J = _with_jacobian(lambda v: flow(v, cond), x)
    law = "the log-determinant is log|det| of the Jacobian"
    tolerance = _tolerance(flow)
    require_close(logdet, torch.linalg.slogdet(J).logabsdet, f"forward: {law}", rtol=1e-8, atol=tolerance)
    _, logdet, J = _with_jacobian(lambda v: flow.inverse(v, cond), z)
    require_close(logdet, torch.linalg.slogdet(J).logabsdet, f"inverse: {law}", rtol=1e-8, atol=tolerance)


def round_trip_in_float32(flow: Flow, x: Tensor, cond: Conditioning, *, rounding: float = 4e-6) -> None:
    """In the precision of training and sampling x is recovered, and the log-determinants are those of float64.

    The errors may reach `rounding`, by default a few dozen roundings of 1.2e-7, times the Jacobian's condition number.
    """
    singular = torch.linalg.svdvals(jacobians(lambda v: flow(v, cond)[0], x))
    low, low_cond = copy.deepcopy(flow).float(), in_dtype(cond, torch.float32)
    with torch.no_grad():
        _, exact = flow(x, cond)
        z, logdet = low(x.float(), low_cond)
        back, inverse_logdet = low.inverse(z, low_cond)
    require_like(z, x.float(), "float32: forward returns z shaped like x")
    tolerance = flow.inverse_error + rounding * singular[:, 0] / singular[:, -1]  # (B,)
    require_at_most((back - x).abs().flatten(1).amax(1), tolerance, "float32: |inverse(forward(x)) − x| is rounding")
    law = "float32: the log-determinant is that of float64"
    require_at_most((logdet - exact).abs(), tolerance, law)
    law = "float32: the log-determinants of both directions cancel"
    require_at_most((inverse_logdet + logdet).abs().double(), tolerance, law)


def autocast_reaches_only_the_nets(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """If the outputs of its nets are exact in bfloat16, a flow gives the same under autocast as in float32.

    A stricter law than `check_flow` asks for, for flows whose nets end in a layer of zeros.
    """
    flow, x, cond = copy.deepcopy(flow).float(), x.float(), in_dtype(cond, torch.float32)
    generator = torch.Generator().manual_seed(6)
    for p in flow.parameters():
        if p.ndim == 1 and not p.any():  # bias of a last layer, whose weights are 0, or an unused one
            p.data = torch.randint(-8, 9, p.shape, generator=generator) / 16
    with torch.no_grad():
        expected = *flow(x, cond), *flow.inverse(x, cond)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = *flow(x, cond), *flow.inverse(x, cond)
    law = "autocast reaches the nets only"
    require(expected[1].abs().max() > 0.03, law, "the biases that are 0 at the start do not change the log-determinant")
    for low, full in zip(found, expected, strict=True):
        require_close(low, full, law, rtol=1e-5, atol=1e-5)  # rounding of float32; that of bfloat16 is 4e-3


def density_integrates_to_one(flow: Flow, cond: Conditioning) -> None:
    """∫p = 1 for a flow of the plane and the condition of one sample."""
    with torch.no_grad():
        draws, _ = flow.inverse(samples(8_000, (2,), scale=1.0), repeated(cond, 0, 8_000))
    # The mass outside the box is about one sample in 8,000. The error of the quadrature is smaller, except if p has
    # kinks: 0.017 for a spline far from the start, and it vanishes with a finer grid.
    tolerance = 1e-3 if flow.smooth else 0.03
    densities.density_integrates_to_one(
        lambda grid: log_density(flow, grid, repeated(cond, 0, len(grid))), draws, tolerance=tolerance
    )


def finite_far_out(flow: Flow, x: Tensor, cond: Conditioning, dtype: torch.dtype = torch.float32) -> None:
    """log p and the score are finite in the directions of x (B, …), B > 2, at B radii from 0 to 1e3."""
    radius = torch.cat([torch.zeros(2), torch.logspace(0, 3, len(x) - 2)]).double()
    direction = torch.nn.functional.normalize(x.flatten(1), dim=1)
    far = (direction * radius[:, None]).view_as(x).to(dtype).requires_grad_()
    log_p = log_density(copy.deepcopy(flow).to(dtype), far, in_dtype(cond, dtype))
    (score,) = torch.autograd.grad(log_p.sum(), far)
    require_finite(log_p, f"log p is finite for 0 ≤ ‖x‖ ≤ 1e3 in {dtype}")
    require_finite(score, f"the score is finite for 0 ≤ ‖x‖ ≤ 1e3 in {dtype}")


def score_is_gradient(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """Autograd's derivatives of log p in x (the score) and in the condition agree with finite differences."""
    _gradcheck(torch.autograd.gradcheck, flow, x, cond, "the score is the gradient of log p")


def score_is_differentiable(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """Autograd's second derivatives of log p, which losses of the score need, agree with finite differences."""
    second = partial(torch.autograd.gradgradcheck, fast_mode=True)
    _gradcheck(second, flow, x, cond, "autograd differentiates the score")


def score_jacobian_is_symmetric(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """∂s/∂x is symmetric, so s is a gradient."""
    densities.score_jacobian_is_symmetric(lambda v: log_density(flow, v, cond), x)


def samples_of_a_batch_are_independent(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """Both directions give for a sample alone what they give for it in a batch."""
    for name, direction in (("forward", flow.forward), ("inverse", flow.inverse)):
        together = direction(x, cond)
        for i in range(len(x)):
            alone = direction(x[i : i + 1], repeated(cond, i, 1))
            for whole, single in zip(together, alone, strict=True):
                law = f"{name} of a sample does not depend on its batch"
                # Not bitwise: matrix products of different sizes round differently.
                require_close(whole[i : i + 1], single, law, rtol=1e-10, atol=1e-10)


def state_dict_is_complete(flow: Flow, other: Flow, x: Tensor, cond: Conditioning) -> None:
    """Loading makes a flow built with another seed the same flow, including its random splits; changes `other`."""
    other.load_state_dict(flow.state_dict())
    for mine, its in zip(flow(x, cond), other(x, cond), strict=True):
        require_close(its, mine, "the state dict determines the flow")


def every_parameter_learns(flow: Flow, x: Tensor, cond: Conditioning) -> None:
    """Near the start the likelihood has a gradient in every parameter."""
    flow = copy.deepcopy(flow)
    # A small step away from the start, where the gradient behind a zero-initialised layer is 0.
    for p in flow.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(4)).double()
    log_density(flow, x, cond).sum().backward()
    without = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    require(not without, "every parameter learns", f"log p has no gradient in {', '.join(without)}")


def _copy(flow: Flow) -> Flow:
    return copy.deepcopy(flow).double().eval()


def _tolerance(flow: Flow) -> float:
    """Rounding, 1e-16, times the condition number of the map and of its Jacobian, which has to be below 1e6."""
    return 1e-8 + flow.inverse_error


def _with_jacobian(direction: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-determinant and Jacobians (B, D, D) of one direction, from one evaluation."""
    logdets: list[Tensor] = []
    outputs: list[Tensor] = []

    def output(v: Tensor) -> Tensor:
        out, logdet = direction(v)
        outputs.append(out.detach())
        logdets.append(logdet.detach())
        return out

    J = jacobians(output, x)
    return outputs[0], logdets[0], J


def _gradcheck(check: Callable[..., bool], flow: Flow, x: Tensor, cond: Conditioning, law: str) -> None:
    if cond.vector is None:
        raise ValueError("a flow needs a condition with a vector: pass the result of inputs.condition.")
    inputs = (x.detach().requires_grad_(), cond.vector.detach().requires_grad_())
    try:
        check(lambda v, e: log_density(flow, v, cond.with_vector(e)), inputs)
    except RuntimeError as error:  # GradcheckError, or autograd that cannot differentiate
        require(False, law, " ".join(str(error).split()))
