"""FFJORD: a continuous flow, the solution of an ordinary differential equation whose right-hand side is a net.

    dz/dt = v = g(z, t; e) + a(e)·z,   z(0) = x,  z(1) = z        d log|det ∂z/∂x| / dt = tr ∂v/∂z = tr ∂g/∂z + Σ a

e is the embedding of (¼ ln σ, c); a, a rate for each dimension, is what σ and c do to its scale. Base → data is the
same equation from t = 1 back to 0. With one hidden layer, g = W₂ act(u) and u = (1 + γ(e, t))·W₁z + β(e, t), the trace
is a sum over the hidden units, exact for any D:

    tr ∂g/∂z = Σ_h act′(u_h)·(1 + γ_h)·(W₁W₂)_hh

A deeper net's takes D products with its Jacobian, or one for Hutchinson's estimate εᵀ(∂g/∂z)ε.
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
from flowdiff.models.flows.base import Flattened, Flow, Sequential
from flowdiff.models.nn.inject import CrossAttention, Inject, zero_init
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.recompute import call
from flowdiff.models.nn.residual import NetSettings
from flowdiff.models.nn.sdpa import first_order
from flowdiff.registry import register

State = tuple[Tensor, Tensor]  # z (B, D) and log|det| (B,)

TIME_FEATURES = 2
FASTEST = 200.0  # radians by which a probe's phases turn for a unit of e: those of σ and of 1.03·σ are unrelated


@register("flow", "ffjord")
class FFJORD(Flow):
    """z = x + ∫₀¹ v(z, t; e) dt, log|det ∂z/∂x| = ∫₀¹ tr ∂v/∂z dt, n_flows times, each with a v of its own.

    x (B, *shape) → z like x, seen as D = prod(shape) dimensions; log-det (B,) in nats. The identity at the start. The
    trace holds act′, so log p is once less differentiable than the activation: elu's score jumps, and leakyrelu's trace
    is piecewise constant and leaves the score to z.

    hidden: width of g; depth: its residual blocks, 0 is one hidden layer, whose exact trace costs next to nothing;
    exact_trace: the largest D for which a net with blocks has its exact trace, at D times the net's cost; inject: how
    (σ, c) enters g.
    steps: that many equal steps of the Runge–Kutta method of fourth order; or, if null, as many of Dormand and Prince's
    as keep the error, estimated over the whole batch, below atol + rtol·|z|.
    backprop: `direct` differentiates the solver's own operations, as often as wanted, and keeps all of them in memory;
    `adjoint` solves a second equation backward in constant memory and gives first derivatives only, which serves
    likelihood training and sampling by the score, but no loss that differentiates the score. Autocast does not reach
    the solver. checkpoint: with `direct`, compute g and its trace again in the backward pass
    (flowdiff/models/nn/recompute.py).

    Not exact: z and log-det are a solver's, so ∫p = 1 and f⁻¹(f(x)) = x hold up to its error, O(steps⁻⁴) or the
    tolerance; the gradients of `adjoint` are off by as much, and with a tolerance a sample depends on its batch. A net
    with blocks and more than exact_trace dimensions has a log-determinant that is an estimate, unbiased over probes: ε
    is a fixed pseudo-random function of e, one per noise level and condition. So log p_σ(x|c) is a deterministic,
    differentiable function of x and the same in every batch, while training meets a new probe with every σ; a score's
    square also counts the probe's variance.

    Raises ConfigurationError unless either steps or rtol and atol are given, or if checkpoint or a second derivative is
    asked of backprop=adjoint.
    Source: Grathwohl et al., "FFJORD: Free-Form Continuous Dynamics for Scalable Reversible Generative Models", 2019;
    one hidden layer: Chen et al., "Neural Ordinary Differential Equations", 2018.
    """

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
                "flow.checkpoint=true does not go with flow.backprop=adjoint, which keeps nothing that could be "
                "computed again: take flow.checkpoint=false or flow.backprop=direct."
            )
        dim = math.prod(shape)
        self.twice_differentiable = backprop == "direct"
        self.forward_differentiable = backprop == "direct" and steps is not None
        solve = Solver(steps, rtol, atol, backprop == "adjoint")
        self.inverse_error = n_flows * solve.error
        settings = NetSettings(hidden, depth, embed_dim, activation, inject, token_dim)

        def velocity() -> Velocity:
            if depth == 0:
                return OneLayer(dim, settings)
            net = ResidualMLP(dim, dim, replace(settings, embed_dim=embed_dim + TIME_FEATURES))
            return Deep(net, dim, None if dim <= exact_trace else Probe(embed_dim, dim))

        flows = [Continuous(velocity(), dim, embed_dim, solve, checkpoint) for _ in range(n_flows)]
        self.flow = Flattened(Sequential(flows))

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


class Equation(NamedTuple):
    """The right-hand side for z and log|det| under one batch of conditions."""

    slope: Callable[[Tensor, State], State]  # (t, (z, log|det|)) → their derivatives in t
    given: list[Tensor]  # what it depends on beside t and the state, none made of another: the adjoint's gradients


class Velocity(nn.Module, ABC):
    """The net g(z, t; e) of z (B, D)."""

    @abstractmethod
    def under(self, cond: Conditioning) -> Equation:
        """Its equation under a batch of conditions."""


@final
class OneLayer(Velocity):
    """g = W₂ act(u), u = (1 + γ)·W₁z + β, and its exact trace; W₂ = 0 at the start.

    film: γ and β are linear in e and in τ, the features of t, and 0 at the start; concat: β alone is linear in them;
    cross_attention: what e reads in the condition's tokens is added to that β.
    """

    def __init__(self, dim: int, settings: NetSettings):
        super().__init__()
        width, embed_dim = settings.width, settings.embed_dim
        self.activation = settings.activation
        self.inner = nn.Linear(dim, width)
        self.outer = zero_init(nn.Linear(width, dim))
        film = settings.inject == "film"
        self.steered = 2 if film else 1  # γ and β, or β
        self.entry = nn.Linear(embed_dim, self.steered * width)
        self.time = nn.Linear(TIME_FEATURES, self.steered * width, bias=False)
        if film:
            nn.init.zeros_(self.time.weight)
            zero_init(self.entry)
        attends = settings.inject == "cross_attention"
        self.attention = CrossAttention(width, embed_dim, settings.token_dim) if attends else None

    def under(self, cond: Conditioning) -> Equation:
        steering = self.entry(cond.vector)  # once, for all steps
        if self.attention is not None:
            steering = self.attention(steering, cond)

        def slope(t: Tensor, state: State) -> State:
            z, _ = state
            *scale, shift = (steering + self.time(time_features(t, z))).chunk(self.steered, dim=1)
            gain = 1 + scale[0] if scale else torch.ones_like(shift)
            u = gain * self.inner(z) + shift
            loops = (self.inner.weight * self.outer.weight.T).sum(1)  # (W₁W₂)_hh
            trace = (self.activation.slope(u) * gain * loops).sum(1)
            return self.outer(self.activation.plain(u)), trace

        return Equation(slope, [*self.inner.parameters(), *self.outer.parameters(), self.time.weight, steering])


@final
class Deep(Velocity):
    """g by any net (z, cond) → (B, D) that reads τ(t) behind e; its trace is the sum of vᵀ(∂g/∂z)v over K vectors v.

    probe: makes the one v of Hutchinson's estimate; None: the D unit vectors, each with a copy of the batch.
    """

    def __init__(self, net: nn.Module, dim: int, probe: Probe | None):
        super().__init__()
        self.net = net
        self.dim = dim
        self.probe = probe

    def under(self, cond: Conditioning) -> Equation:
        e = cond.vector
        v = torch.eye(self.dim).to(e)[:, None] if self.probe is None else self.probe(e)[None]
        v = v.expand(-1, len(e), -1)  # (K, B, D)
        copies = Conditioning.cat([cond] * len(v))  # tensors of their own also where there is one

        def slope(t: Tensor, state: State) -> State:
            return self._slope(state[0], copies, time_features(t, state[0]), v)

        given = [copies.vector, *([] if copies.tokens is None else [copies.tokens])]
        return Equation(slope, [*self.net.parameters(), *given])

    def _slope(self, z: Tensor, cond: Conditioning, time: Tensor, v: Tensor) -> State:
        differentiable = torch.is_grad_enabled()
        # The trace is a derivative of g, also where autograd is off, and log p is then differentiated once more.
        with torch.enable_grad(), first_order(False):
            z = z.repeat(len(v), 1)  # (K·B, D)
            if not differentiable:
                z = z.detach().requires_grad_()
            elif not z.requires_grad:
                z = z + torch.zeros_like(z).requires_grad_()  # which, other than detach, keeps a forward-mode tangent
            vector = torch.cat([cond.vector, time.expand(len(z), -1)], dim=1)
            g = self.net(z, cond.with_vector(vector))
            (products,) = torch.autograd.grad(g, z, v.flatten(0, 1), create_graph=differentiable)
        trace = (products.view_as(v) * v).sum((0, 2))
        g = g[: v.shape[1]]
        return (g if differentiable else g.detach()), trace


class Continuous(Flow):
    """z(0) → z(1) of dz/dt = g + a(e)·z for z (B, D); a is linear in e and 0 at the start.

    checkpoint: each evaluation of g and its trace is computed again in the backward pass.
    """

    def __init__(self, velocity: Velocity, dim: int, embed_dim: int, solve: Solver, checkpoint: bool):
        super().__init__()
        self.checkpoint = checkpoint
        self.velocity = velocity
        self.rate = zero_init(nn.Linear(embed_dim, dim))
        self.solve = solve

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self._integrate(x, cond, 0.0, 1.0)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self._integrate(z, cond, 1.0, 0.0)

    @torch.compiler.disable
    def _integrate(self, z: Tensor, cond: Conditioning, start: float, end: float) -> tuple[Tensor, Tensor]:
        # Autocast would round g, and with it z and the way back, to three digits.
        with torch.autocast(z.device.type, enabled=False):
            of_net, rate = self.velocity.under(cond), self.rate(cond.vector)

            def slope(t: Tensor, state: State) -> State:
                z, logdet = state
                g, trace = call(lambda z: of_net.slope(t, (z, logdet)), z, checkpoint=self.checkpoint)
                return g + rate * z, trace + rate.sum(1)

            equation = Equation(slope, [*of_net.given, rate])
            return self.solve(equation, (z, z.new_zeros(len(z))), start, end)


def time_features(t: Tensor, z: Tensor) -> Tensor:
    """τ(t) = cos πkt, k = 1, 2, for t ∈ [0, 1]: (1, 2) of the type of z."""
    k = torch.arange(1, TIME_FEATURES + 1, dtype=z.dtype, device=z.device)
    return torch.cos(math.pi * k * t)[None]


class Probe(nn.Module):
    """ε(e) = √2·cos(ωe + φ), ω ~ N(0, 200²), φ uniform: (B, embed_dim) → (B, D) without gradient.

    Over noise levels and conditions ε has mean 0 and covariance I, as Hutchinson's estimate wants it; the phases turn
    faster with e than a net can follow, and slowly enough for e's rounding (1e-7) not to matter. Drawn from torch's
    global generator and kept in the state dict.
    """

    def __init__(self, embed_dim: int, dim: int):
        super().__init__()
        self.register_buffer("frequencies", FASTEST * torch.randn(dim, embed_dim))
        self.register_buffer("phases", 2 * math.pi * torch.rand(dim))

    @torch.no_grad()
    def forward(self, e: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(e @ self.frequencies.T + self.phases)


class Solver:
    """state(start) → state(end) of a differential equation by torchdiffeq; see FFJORD for the settings."""

    def __init__(self, steps: int | None, rtol: float | None, atol: float | None, adjoint: bool):
        import torchdiffeq  # takes scipy along

        fixed = steps is not None
        if [rtol is None, atol is None] != [fixed, fixed]:
            raise ConfigurationError(
                f"flow=ffjord was given flow.steps={steps} flow.rtol={rtol} flow.atol={atol}: it takes either steps or "
                "both tolerances, so set the others to null."
            )
        self.error = 3 * steps**-4 if fixed else 10 * (rtol + atol)  # of a velocity whose slopes are of order one
        self.adjoint = adjoint
        self.integrate = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
        if fixed:
            grid = {"grid_constructor": lambda f, y, t: torch.linspace(t[0], t[-1], steps + 1).to(t)}
            self.settings: dict[str, Any] = {"method": "rk4", "options": grid}
        else:
            self.settings = {"method": "dopri5", "rtol": rtol, "atol": atol}

    def __call__(self, equation: Equation, state: State, start: float, end: float) -> State:
        settings = self.settings
        if self.adjoint:
            settings = settings | {"adjoint_params": tuple(p for p in equation.given if p.requires_grad)}
        t = torch.tensor([start, end]).to(state[0])
        z, logdet = (path[-1] for path in self.integrate(equation.slope, state, t, **settings))
        return (FirstOrder.apply(z), FirstOrder.apply(logdet)) if self.adjoint else (z, logdet)


class FirstOrder(torch.autograd.Function):
    """The identity, which refuses to be differentiated twice: the adjoint's second derivative would silently be 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # create_graph=True
            raise ConfigurationError(
                "flow.backprop=adjoint gives first derivatives only and the derivative of a score was asked for: "
                "take flow.backprop=direct or loss=nll."
            )
        return gradient
