"""FFJORD: a continuous flow, the solution of an ordinary differential equation whose right-hand side is a net.

    dz/dt = v = g(z, t; e) + a(e)·z,   z(0) = x,  z(1) = z        d log|det ∂z/∂x| / dt = tr ∂v/∂z = tr ∂g/∂z + Σ a

e is the embedding of (¼ ln σ, c); a(e), one rate per dimension, lets σ and c set the scale of each dimension. Base →
data solves the same equation from t = 1 back to 0. With one hidden layer, g = W₂ act(u) and u = (1 + α(e, t))·W₁z +
β(e, t), the trace is a sum over the hidden units, exact for any D:

    tr ∂g/∂z = Σ_h act′(u_h)·(1 + α_h)·(W₁W₂)_hh

The exact trace of a deeper net takes D products with its Jacobian; Hutchinson's estimate εᵀ(∂g/∂z)ε takes one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, final

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flattened, Flow, Sequential, embedding
from flowdiff.models.flows.gate import gated
from flowdiff.models.nn.control import Control, Controllable, HintPart, trainable_copy
from flowdiff.models.nn.embeddings import unit_linear
from flowdiff.models.nn.inject import CrossAttention, Inject, zero_init
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.recompute import call
from flowdiff.models.nn.residual import NetSettings
from flowdiff.models.nn.sdpa import first_order
from flowdiff.registry import register

State = tuple[Tensor, Tensor]  # z (B, D) and log|det| (B,)

TIME_FEATURES = 2
PROBE_FREQUENCY = 200.0  # radians of a probe's phase per unit of e: the probes of σ and 1.03·σ are unrelated


@register("flow", "ffjord")
class FFJORD(Flow):
    """Continuous flow: n_flows ordinary differential equations solved one after the other, each with its own net.

    z = x + ∫₀¹ v(z, t; e) dt,  log|det ∂z/∂x| = ∫₀¹ tr ∂v/∂z dt

    The trace contains act′, so log p is once less differentiable than the activation: with elu the score jumps, and
    with leakyrelu the trace is piecewise constant, so that only z contributes to the score.

    backprop=direct differentiates the solver's own operations; backprop=adjoint solves a second equation backward,
    whose first derivatives are enough for loss=nll and for sampling but not for losses that differentiate the score.

    The map is not exact: z and the log-determinant come from a numerical solver, so ∫p = 1 and f⁻¹(f(x)) = x hold up to
    the solver's error, O(steps⁻⁴) or the tolerance. The gradients of backprop=adjoint have an error of the same size,
    and with a tolerance a sample depends on the rest of its batch. Autocast does not reach the solver.

    With depth > 0 and more than exact_trace dimensions the log-determinant is an estimate, unbiased over probes: ε is a
    fixed pseudo-random function of e, one per noise level and condition. So log p_σ(x|c) is a deterministic,
    differentiable function of x and the same in every batch, while training sees a new probe with every σ. The squared
    norm of a score also contains the variance of the probe.

    Args:
        shape: shape of one sample, (D,) or (C, H, W), flattened to D = prod(shape) dimensions.
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of g.
        token_dim: width of cond.tokens (B, L, token_dim), read by inject=cross_attention; 0 without tokens.
        n_flows: number of equations, ≥ 1.
        hidden: width of g, ≥ 1.
        depth: residual blocks of g, ≥ 0; 0 is one hidden layer, whose exact trace costs next to nothing.
        inject: how (σ, c) enters g, film | concat | cross_attention.
        steps: equal steps of the fourth-order Runge–Kutta method, ≥ 1; None: adaptive steps of Dormand and Prince.
        rtol: relative tolerance > 0 of the adaptive steps; the error over the whole batch stays below atol + rtol·|z|.
        atol: absolute tolerance > 0 of the adaptive steps.
        exact_trace: largest D with the exact trace if depth > 0, at D times the cost of the net, ≥ 0.
        backprop: direct (any derivative, all steps kept in memory) | adjoint (constant memory, first derivatives only).
        checkpoint: recompute g and its trace in the backward pass instead of storing activations, backprop=direct only.

    Raises:
        ConfigurationError: not exactly one of steps and (rtol, atol) is given.
        ConfigurationError: checkpoint, or a second derivative, is requested with backprop=adjoint.

    Source: Grathwohl et al., FFJORD: Free-Form Continuous Dynamics for Scalable Reversible Generative Models, 2019; one
    hidden layer: Chen et al., Neural Ordinary Differential Equations, 2018.
    """

    takes_gate = True
    inverse_by = "the same equation, backward in t"

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        token_dim: int = 0,
        *,
        n_flows: PositiveInt,
        hidden: PositiveInt,
        depth: NonNegativeInt,
        inject: Inject,
        steps: PositiveInt | None,
        rtol: PositiveFloat | None,
        atol: PositiveFloat | None,
        exact_trace: NonNegativeInt,
        backprop: Literal["direct", "adjoint"],
        checkpoint: bool,
    ):
        super().__init__()
        if checkpoint and backprop == "adjoint":
            raise ConfigurationError(
                "flow.checkpoint=true does not work with flow.backprop=adjoint, which stores no activations that "
                "could be recomputed: take flow.checkpoint=false or flow.backprop=direct."
            )
        dim = math.prod(shape)
        self.twice_differentiable = backprop == "direct"
        self.forward_differentiable = backprop == "direct" and steps is not None
        solve = Solver(steps, rtol, atol, backprop == "adjoint")
        self.inverse_error = n_flows * solve.error
        settings = NetSettings(hidden, depth, embed_dim, activation, inject, token_dim)

        def velocity() -> Velocity:
            if depth == 0:
                return OneLayerVelocity(dim, settings)
            net = ResidualMLP(dim, dim, replace(settings, embed_dim=embed_dim + TIME_FEATURES))
            return NetVelocity(net, dim, None if dim <= exact_trace else Probe(embed_dim, dim))

        flows = [ContinuousFlow(velocity(), dim, embed_dim, solve, checkpoint) for _ in range(n_flows)]
        self.flow = Flattened(Sequential(flows))

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


class Equation(NamedTuple):
    """The right-hand side for z and log|det| under one batch of conditions."""

    derivative: Callable[[Tensor, State], State]  # (t, (z, log|det|)) → their derivatives in t
    inputs: list[Tensor]  # what else it depends on, no tensor computed from another: the adjoint's gradients


class Velocity(nn.Module, ABC):
    """The net g(z, t; e) of z (B, D)."""

    @abstractmethod
    def equation(self, cond: Conditioning) -> Equation:
        """dz/dt = g and its trace under a batch of conditions."""


@final
class OneLayerVelocity(Velocity, Controllable):
    """g with one hidden layer and its exact trace; W₂ = 0 at the start.

    g = W₂ act(u),  u = (1 + α)·W₁z + β

    film: α and β are linear in e and in τ, the features of t, and 0 at the start; concat: α = 0 and β is linear in
    them; cross_attention: as concat, and an attention of e over the condition's tokens is added to β.
    """

    def __init__(self, dim: int, settings: NetSettings):
        super().__init__()
        width, embed_dim = settings.width, settings.embed_dim
        self.activation = settings.activation
        self.inner = nn.Linear(dim, width)
        self.outer = nn.Linear(width, dim)
        zero_init(self.outer)
        film = settings.inject == "film"
        self.chunks = 2 if film else 1  # α and β, or β
        self.entry = nn.Linear(embed_dim, self.chunks * width)
        self.time = nn.Linear(TIME_FEATURES, self.chunks * width, bias=False)
        if film:
            nn.init.zeros_(self.time.weight)
            zero_init(self.entry)
        attends = settings.inject == "cross_attention"
        self.attention = CrossAttention(width, embed_dim, settings.token_dim) if attends else None
        self.controls = nn.ModuleList()

    def make_control(self, part: HintPart) -> Control:
        return VelocityControl(self, part)

    def equation(self, cond: Conditioning) -> Equation:
        own = self.equation_of(cond)
        others = [(c.strength, c.equation(cond)) for c in self.active(cond) if isinstance(c, VelocityControl)]
        if not others:
            return own

        def derivative(t: Tensor, state: State) -> State:
            g, trace = own.derivative(t, state)
            for strength, other in others:
                more, more_trace = other.derivative(t, state)
                g, trace = g + strength * more, trace + strength * more_trace
            return g, trace

        return Equation(derivative, [*own.inputs, *(tensor for _, other in others for tensor in other.inputs)])

    def equation_of(self, cond: Conditioning, entering: Tensor | None = None) -> Equation:
        """The equation without controls; `entering` is added to what (α, β) are before the features of t."""
        steering = self.entry(cond.vector)  # once, for all steps
        if entering is not None:
            steering = steering + entering
        if self.attention is not None:
            steering = self.attention(steering, cond)

        def derivative(t: Tensor, state: State) -> State:
            z, _ = state
            *scale, shift = (steering + self.time(time_features(t, z))).chunk(self.chunks, dim=1)
            gain = 1 + scale[0] if scale else torch.ones_like(shift)
            u = gain * self.inner(z) + shift
            diagonal = (self.inner.weight * self.outer.weight.T).sum(1)  # (W₁W₂)_hh
            trace = (self.activation.slope(u) * gain * diagonal).sum(1)
            return self.outer(self.activation.plain(u)), trace

        return Equation(
            derivative, [*self.inner.parameters(), *self.outer.parameters(), *self.time.parameters(), steering]
        )


@final
class VelocityControl(Control):
    """A trainable copy of a velocity of one hidden layer whose α and β also depend on a hint; 0 at the start.

    Args:
        velocity: the velocity.
        part: the hint.
    """

    def __init__(self, velocity: OneLayerVelocity, part: HintPart):
        super().__init__(part)
        self.velocity = trainable_copy(velocity)
        zero_init(self.velocity.outer)
        self.entry = unit_linear(part.size, velocity.entry.out_features, bias=False).to(velocity.entry.weight)

    def equation(self, cond: Conditioning) -> Equation:
        """Its derivative and the trace of that, under a batch of conditions."""
        return self.velocity.equation_of(cond, self.entry(self.hint(cond).flatten(1)))


@final
class NetVelocity(Velocity):
    """g by any net (z, cond) → (B, D) that reads [e, τ(t)]; its trace is the sum of vᵀ(∂g/∂z)v over K vectors v.

    Args:
        net: the net; its condition has the vector [e, τ(t)] (B, embed_dim + TIME_FEATURES).
        dim: D.
        probe: makes the one vector v of Hutchinson's estimate; None: the D unit vectors, each with a copy of the batch.
    """

    def __init__(self, net: nn.Module, dim: int, probe: Probe | None):
        super().__init__()
        self.net = net
        self.dim = dim
        self.probe = probe

    def equation(self, cond: Conditioning) -> Equation:
        e = embedding(cond)
        v = torch.eye(self.dim).to(e)[:, None] if self.probe is None else self.probe(e)[None]
        v = v.expand(-1, len(e), -1)  # (K, B, D)
        copies = Conditioning.cat([cond] * len(v))  # new tensors even if K = 1

        def derivative(t: Tensor, state: State) -> State:
            return self._derivative(state[0], copies, time_features(t, state[0]), v)

        inputs = [embedding(copies), *([] if copies.tokens is None else [copies.tokens])]
        return Equation(derivative, [*self.net.parameters(), *inputs])

    def _derivative(self, z: Tensor, cond: Conditioning, time: Tensor, v: Tensor) -> State:
        differentiable = torch.is_grad_enabled()
        # The trace is a derivative of g, needed even with autograd off, and log p is then differentiated once more.
        with torch.enable_grad(), first_order(False):
            z = z.repeat(len(v), 1)  # (K·B, D)
            if not differentiable:
                z = z.detach().requires_grad_()
            elif not z.requires_grad:
                z = z + torch.zeros_like(z).requires_grad_()  # unlike detach, this keeps a forward-mode tangent
            vector = torch.cat([embedding(cond), time.expand(len(z), -1)], dim=1)
            g = self.net(z, cond.with_vector(vector))
            (products,) = torch.autograd.grad(g, z, v.flatten(0, 1), create_graph=differentiable)
        trace = (products.view_as(v) * v).sum((0, 2))
        g = g[: v.shape[1]]
        return (g if differentiable else g.detach()), trace


def _uncompiled(integrate: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function as torch.compile leaves it alone; a decorator would import the compiler into every command."""
    return torch.compiler.disable(integrate)


class ContinuousFlow(Flow):
    """Data → base by solving one differential equation from t = 0 to 1.

    dz/dt = γ²·(g + a(e)·z) for z (B, D); a is linear in e and 0 at the start, γ² the gate.

    Args:
        velocity: g and its trace.
        dim: D.
        embed_dim: width of the embedding e.
        solve: the solver.
        checkpoint: recompute each evaluation of g and its trace in the backward pass.
    """

    def __init__(self, velocity: Velocity, dim: int, embed_dim: int, solve: Solver, checkpoint: bool):
        super().__init__()
        self.checkpoint = checkpoint
        self.velocity = velocity
        self.rate = zero_init(nn.Linear(embed_dim, dim))
        self.solve = solve

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return _uncompiled(self._integrate)(x, cond, 0.0, 1.0)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return _uncompiled(self._integrate)(z, cond, 1.0, 0.0)

    def _integrate(self, z: Tensor, cond: Conditioning, start: float, end: float) -> tuple[Tensor, Tensor]:
        # Autocast would round g, and with it z and the inverse, to three digits.
        with torch.autocast(z.device.type, enabled=False):
            net, rate = self.velocity.equation(cond), self.rate(cond.vector)

            def derivative(t: Tensor, state: State) -> State:
                z, logdet = state
                g, trace = call(lambda z: net.derivative(t, (z, logdet)), z, checkpoint=self.checkpoint)
                return gated(g + rate * z, cond), gated(trace + rate.sum(1), cond)

            equation = Equation(derivative, [*net.inputs, rate, *([] if cond.gate is None else [cond.gate])])
            return self.solve(equation, (z, z.new_zeros(len(z))), start, end)


def time_features(t: Tensor, z: Tensor) -> Tensor:
    """τ(t) = cos πkt, k = 1, 2, for t ∈ [0, 1]: (1, 2) with the dtype of z."""
    k = torch.arange(1, TIME_FEATURES + 1, dtype=z.dtype, device=z.device)
    return torch.cos(math.pi * k * t)[None]


class Probe(nn.Module):
    """The vector ε of Hutchinson's estimate, a pseudo-random function of e without gradient.

    ε(e) = √2·cos(ωe + φ),  ω ~ N(0, 200²),  φ uniform on [0, 2π],  (B, embed_dim) → (B, D)

    Over noise levels and conditions ε has mean 0 and covariance I, as Hutchinson's estimate requires. The phases turn
    faster with e than a net can follow, and slowly enough for rounding of e (1e-7) not to matter. ω and φ are drawn
    from torch's global generator and kept in the state dict.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, embed_dim: int, dim: int):
        super().__init__()
        self.register_buffer("frequencies", PROBE_FREQUENCY * torch.randn(dim, embed_dim))
        self.register_buffer("phases", 2 * math.pi * torch.rand(dim))

    @torch.no_grad()
    def forward(self, e: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(e @ self.frequencies.T + self.phases)


class Solver:
    """state(start) → state(end) of a differential equation by torchdiffeq; the arguments are those of FFJORD."""

    def __init__(self, steps: int | None, rtol: float | None, atol: float | None, adjoint: bool):
        import torchdiffeq  # imports scipy

        # error: of a velocity whose slopes are of order one.
        if steps is not None and rtol is None and atol is None:
            self.error = 3 * steps**-4
            grid = {"grid_constructor": lambda f, y, t: torch.linspace(t[0], t[-1], steps + 1).to(t)}
            self.settings: dict[str, Any] = {"method": "rk4", "options": grid}
        elif steps is None and rtol is not None and atol is not None:
            self.error = 10 * (rtol + atol)
            self.settings = {"method": "dopri5", "rtol": rtol, "atol": atol}
        else:
            raise ConfigurationError(
                f"flow=ffjord was given flow.steps={steps} flow.rtol={rtol} flow.atol={atol}: it takes either steps or "
                "both tolerances, so set the others to null."
            )
        self.adjoint = adjoint
        self.integrate = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint

    def __call__(self, equation: Equation, state: State, start: float, end: float) -> State:
        settings = self.settings
        if self.adjoint:
            settings = settings | {"adjoint_params": tuple(p for p in equation.inputs if p.requires_grad)}
        t = torch.tensor([start, end]).to(state[0])
        z, logdet = (path[-1] for path in self.integrate(equation.derivative, state, t, **settings))
        return (FirstOrder.apply(z), FirstOrder.apply(logdet)) if self.adjoint else (z, logdet)


class FirstOrder(torch.autograd.Function):
    """The identity, which raises an error if differentiated twice: the adjoint's second derivative would be 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # create_graph=True
            raise ConfigurationError(
                "flow.backprop=adjoint gives first derivatives only, and the derivative of a score was requested: "
                "take flow.backprop=direct or loss=nll."
            )
        return gradient
