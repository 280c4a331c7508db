"""FFJORD: a continuous flow, the solution of an ordinary differential equation whose right-hand side is a net.

    dz/dt = g(z, t; e),   z(0) = x,  z(1) = z        d log|det ∂z/∂x| / dt = tr ∂g/∂z

e is the embedding of (¼ ln σ, c). Base → data is the same equation from t = 1 back to 0. The trace is exact for few
dimensions; for many it is Hutchinson's estimate εᵀ(∂g/∂z)ε, for which one product with the Jacobian is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.activations import Activation
from flowdiff.conditioning import Conditioning
from flowdiff.errors import ConfigurationError
from flowdiff.flows.base import Flattened, Flow, Sequential
from flowdiff.nn.inject import Inject
from flowdiff.nn.mlp import ResidualMLP
from flowdiff.registry import register

State = tuple[Tensor, Tensor]  # z (B, D) and log|det| (B,)

TIME_FEATURES = 4
FASTEST = 200.0  # radians by which a probe's phases turn for a unit of e: those of σ and of 1.03·σ are unrelated


@register("flow", "ffjord")
class FFJORD(Flow):
    """z = x + ∫₀¹ g(z, t; e) dt, log|det ∂z/∂x| = ∫₀¹ tr ∂g/∂z dt, n_flows times, each with a net g of its own.

    x (B, *shape) → z like x, seen as D = prod(shape) dimensions; log-det (B,) in nats. The identity at the start, as
    smooth as its activation.

    hidden, depth: width and residual blocks of g; inject: how (σ, c) enters it. steps: that many equal steps of the
    Runge–Kutta method of fourth order; or, if null, as many of Dormand and Prince's as keep the error, estimated over
    the whole batch, below atol + rtol·|z|. exact_trace: the largest D whose trace is exact.
    backprop: `direct` differentiates the solver's own operations, as often as wanted, and keeps all of them in memory;
    `adjoint` solves a second equation backward in constant memory and gives first derivatives only, which serves
    likelihood training and sampling by the score, but no loss that differentiates the score.

    Not exact: z and log-det are a solver's, so ∫p = 1 and f⁻¹(f(x)) = x hold up to its error, O(steps⁻⁴) or the
    tolerance; the gradients of `adjoint` are off by as much, and with a tolerance a sample depends on its batch. Above
    exact_trace the log-determinant is an estimate, unbiased over probes: ε is a fixed pseudo-random function of e,
    one per noise level and condition. So log p_σ(x|c) is a deterministic, differentiable function of x and the same
    in every batch, while training meets a new probe with every σ; a score's square also counts the probe's variance.

    Raises ConfigurationError unless either steps or rtol and atol are given, or if a second derivative is asked of
    backprop=adjoint.
    Source: Grathwohl et al., "FFJORD: Free-Form Continuous Dynamics for Scalable Reversible Generative Models", 2019.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        token_dim: int = 0,
        *,
        n_flows: PositiveInt,
        hidden: PositiveInt,
        depth: PositiveInt,
        inject: Inject,
        steps: PositiveInt | None,
        rtol: PositiveFloat | None,
        atol: PositiveFloat | None,
        exact_trace: NonNegativeInt,
        backprop: Literal["adjoint", "direct"],
    ):
        super().__init__()
        dim = math.prod(shape)
        self.twice_differentiable = backprop == "direct"
        self.forward_differentiable = backprop == "direct" and steps is not None
        solve = Solver(steps, rtol, atol, backprop == "adjoint")
        self.inverse_error = n_flows * solve.error
        flows: list[Flow] = []
        for _ in range(n_flows):
            net = ResidualMLP(dim, dim, hidden, depth, embed_dim + TIME_FEATURES, activation, inject, token_dim)
            flows.append(Continuous(net, solve, None if dim <= exact_trace else Probe(embed_dim, dim)))
        self.flow = Flattened(Sequential(flows))

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


class Continuous(Flow):
    """One equation for z (B, D): net(z, cond) → (B, D) reads the time as four more entries of cond.vector.

    probe: its vector ε for Hutchinson's estimate of the trace; None: the exact trace, at D products with the Jacobian.
    """

    def __init__(self, net: nn.Module, solve: Solver, probe: Probe | None):
        super().__init__()
        self.net = net
        self.solve = solve
        self.probe = probe

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self._integrate(x, cond, 0.0, 1.0)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self._integrate(z, cond, 1.0, 0.0)

    @torch.compiler.disable
    def _integrate(self, z: Tensor, cond: Conditioning, start: float, end: float) -> tuple[Tensor, Tensor]:
        # The trace is the sum of vᵀ(∂g/∂z)v over K vectors v, (K, 1 or B, D); each has a copy of the batch of its own.
        vectors = torch.eye(z.shape[1]).to(z)[:, None] if self.probe is None else self.probe(cond.vector)[None]
        vectors = vectors.expand(-1, len(z), -1)
        copies = repeated(cond, len(vectors))

        def velocity(t: Tensor, state: State) -> State:
            return self._velocity(t, state[0], copies, vectors)

        # What the equation depends on beside its state, and the adjoint finds a gradient for.
        given = [*self.net.parameters(), copies.vector, *([] if copies.tokens is None else [copies.tokens])]
        return self.solve(velocity, (z, z.new_zeros(len(z))), start, end, given)

    def _velocity(self, t: Tensor, z: Tensor, cond: Conditioning, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """g (B, D) and its trace (B,); the trace takes a derivative of g also where autograd is off."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            z = z.repeat(len(vectors), 1)  # (K·B, D)
            if not differentiable:
                z = z.detach().requires_grad_()
            elif not z.requires_grad:
                z = z + torch.zeros_like(z).requires_grad_()  # which, other than detach, keeps a forward-mode tangent
            g = self.net(z, cond.with_vector(torch.cat([cond.vector, time_features(t, z)], dim=1))).to(z.dtype)
            (products,) = torch.autograd.grad(g, z, vectors.flatten(0, 1), create_graph=differentiable)
            trace = (products.view_as(vectors) * vectors).sum((0, 2))
            g = g[: vectors.shape[1]]
        return (g, trace) if differentiable else (g.detach(), trace.detach())


def repeated(cond: Conditioning, times: int) -> Conditioning:
    """The batch of conditions one after the other, `times` times."""
    return cond if times == 1 else Conditioning.cat([cond] * times)


def time_features(t: Tensor, z: Tensor) -> Tensor:
    """cos πkt, k = 1 … 4, for t ∈ [0, 1]: (B, 4), the same in every row."""
    k = torch.arange(1, TIME_FEATURES + 1, dtype=z.dtype, device=z.device)
    return torch.cos(math.pi * k * t).expand(len(z), -1)


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
        with torch.autocast(e.device.type, enabled=False):
            return math.sqrt(2) * torch.cos(e.to(self.phases) @ self.frequencies.T + self.phases)


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
        self.error = steps**-4 if fixed else 10 * (rtol + atol)  # of a solution of order one, roughly
        self.adjoint = adjoint
        self.integrate = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
        if fixed:
            grid = {"grid_constructor": lambda f, y, t: torch.linspace(t[0], t[-1], steps + 1).to(t)}
            self.settings: dict[str, Any] = {"method": "rk4", "options": grid}
        else:
            self.settings = {"method": "dopri5", "rtol": rtol, "atol": atol}

    def __call__(
        self,
        velocity: Callable[[Tensor, State], State],
        state: State,
        start: float,
        end: float,
        given: list[Tensor],
    ) -> State:
        """given: the tensors beside the state that `velocity` depends on."""
        settings = self.settings
        if self.adjoint:
            settings = settings | {"adjoint_params": tuple(p for p in given if p.requires_grad)}
        t = torch.tensor([start, end]).to(state[0])
        z, logdet = (path[-1] for path in self.integrate(velocity, state, t, **settings))
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
