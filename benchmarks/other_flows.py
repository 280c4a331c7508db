"""RealNVP, spline couplings and MAF from flowdiff, zuko, nflows and normflows, of equal size and with one interface.

Every model maps x (B, DIM) with a context (B, CONTEXT) to z and log|det ∂z/∂x|, and back. Every net has three hidden
layers of HIDDEN units with SiLU between them. Each package adds its own parts that read the context (FiLM, gates, a
wider first layer); they are at most 4 % of the parameters. The affine coupling of normflows takes no context, so its
net receives the context before every call. Splines have BINS bins on [−BOUND, BOUND].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import create

DIM, CONTEXT, HIDDEN = 64, 16, 128
COUPLINGS, MAPS = 8, 3  # layers of realnvp and spline, and of maf
BINS, BOUND = 8, 5.0
LAYERS = {"realnvp": COUPLINGS, "spline": COUPLINGS, "maf": MAPS}
ALTERNATING = torch.arange(DIM) % 2  # mask of a coupling


class Flowdiff(nn.Module):
    def __init__(self, family: str):
        super().__init__()
        depth = 3 if family == "maf" else 1  # a residual block adds two layers to the first one
        size = {"n_flows": LAYERS[family], "hidden": HIDDEN, "depth": depth, "bins": BINS, "bound": BOUND}
        runtime = {"shape": (DIM,), "embed_dim": CONTEXT, "activation": create("activation", "swish"), "token_dim": 0}
        self.flow = create("flow", family, **runtime, **size)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow(x, Conditioning(c))

    def inverse(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, Conditioning(c))


class Zuko(nn.Module):
    def __init__(self, family: str):
        super().__init__()
        from zuko.flows import MAF, RealNVP
        from zuko.transforms import MonotonicRQSTransform

        size = {"transforms": LAYERS[family], "hidden_features": [HIDDEN] * 3, "activation": nn.SiLU}
        spline = {
            "univariate": partial(MonotonicRQSTransform, bound=BOUND),
            "shapes": [(BINS,), (BINS,), (BINS - 1,)],
        }
        extra = {"realnvp": {"randmask": True}, "spline": {"randmask": True, **spline}, "maf": {}}[family]
        self.flow = (MAF if family == "maf" else RealNVP)(DIM, CONTEXT, **size, **extra)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.transform(c).call_and_ladj(x)

    def inverse(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.transform(c).inv.call_and_ladj(z)


class NFlows(nn.Module):
    def __init__(self, family: str):
        super().__init__()
        from nflows.nn.nets import ResidualNet
        from nflows.transforms import (
            AffineCouplingTransform,
            CompositeTransform,
            MaskedAffineAutoregressiveTransform,
            PiecewiseRationalQuadraticCouplingTransform,
            ReversePermutation,
        )

        made = {"context_features": CONTEXT, "num_blocks": 1, "activation": silu}
        net = partial(ResidualNet, hidden_features=HIDDEN, **made)
        masks = [(ALTERNATING + i) % 2 for i in range(LAYERS[family])]
        if family == "realnvp":
            layers = [AffineCouplingTransform(mask, net) for mask in masks]
        elif family == "spline":
            spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
            layers = [PiecewiseRationalQuadraticCouplingTransform(mask, net, **spline) for mask in masks]
        else:
            layers = []
            for _ in masks:
                layers += [MaskedAffineAutoregressiveTransform(DIM, HIDDEN, **made), ReversePermutation(DIM)]
        self.flow = CompositeTransform(layers)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow(x, c)

    def inverse(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, c)


class NormFlows(nn.Module):
    def __init__(self, family: str):
        super().__init__()
        from normflows.flows import AffineCouplingBlock, MaskedAffineAutoregressive, Permute
        from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
        from normflows.nets.resnet import ResidualNet

        made = {"context_features": CONTEXT, "num_blocks": 1, "activation": silu}
        net = partial(ResidualNet, hidden_features=HIDDEN, **made)
        self.nets: list[NetWithContext] = []
        layers: list[nn.Module] = []
        for i in range(LAYERS[family]):
            if family == "realnvp":
                self.nets.append(NetWithContext(net(DIM // 2, DIM)))
                nn.init.zeros_(self.nets[-1].net.final_layer.weight)  # as in its examples: its e^s is not bounded
                nn.init.zeros_(self.nets[-1].net.final_layer.bias)
                layers += [AffineCouplingBlock(self.nets[-1]), Permute(DIM, "swap")]
            elif family == "spline":
                spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
                layers.append(PiecewiseRationalQuadraticCoupling((ALTERNATING + i) % 2, net, **spline))
            else:  # its forward direction is the parallel one, as in flowdiff
                layers += [MaskedAffineAutoregressive(DIM, HIDDEN, **made), Permute(DIM, "swap")]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self._through([layer.forward for layer in self.layers], x, c)

    def inverse(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self._through([layer.inverse for layer in reversed(self.layers)], z, c)

    def _through(self, steps: list[Callable], x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        for net in self.nets:
            net.context = c
        total = x.new_zeros(len(x))
        for step in steps:
            x, logdet = step(x) if self.nets else step(x, c)
            total = total + logdet
        return x, total


class NetWithContext(nn.Module):
    """net(x, context) as a function of x alone; set `context` before each call."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.context: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, self.context)


PACKAGES = {"flowdiff": Flowdiff, "zuko": Zuko, "nflows": NFlows, "normflows": NormFlows}


def installed() -> dict[str, type[nn.Module]]:
    """{package: its model class} of the installed packages, flowdiff first."""
    return {name: made for name, made in PACKAGES.items() if importlib.util.find_spec(name)}
