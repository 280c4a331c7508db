"""Writes docs/flows.md: what every registered flow promises, and its cost on the digits at its default settings.

    python benchmarks/families.py [--batch 256] [--threads 1] [--seconds 10] [--output docs/flows.md]

Costs are measured in float32 on a CPU. First 0.3·N(0, 1/fan_in) is added to every parameter of the flow, because some
inverses are easy for an untrained flow. The page shows the seconds of a forward pass of the flow alone without grad,
and in multiples of them log_prob (with whitening and the embedding of σ and class), the score in eval mode and the
inverse. The four take turns, and times are medians.
"""

from __future__ import annotations

import argparse
import math
import typing
import warnings
from pathlib import Path

import torch
from measuring import median_seconds
from rich.progress import track

import flowdiff
from flowdiff import registry
from flowdiff.config import defaults
from flowdiff.errors import ConfigurationError
from flowdiff.models.flows.base import Flow

EMBED = 16
GAIN = 0.3
# Kind of samples → an example of their shape.
KINDS = {"vectors": (6,), "images": (1, 8, 8)}
PROMISES = ("flow", "samples", "smooth in x", "derivatives", "at the start", "inverse", "`inject`")
COSTS = ("flow", "parameters", "forward", "log_prob", "score", "inverse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="measuring time per flow")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "flows.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    names = registry.names("flow")
    costs = [cost(name, given.batch, given.seconds) for name in track(names, "measuring")]
    given.output.write_text(page([promises(name) for name in names], costs, given.batch, given.threads))


def page(promised: list[tuple[str, ...]], costs: list[tuple[str, ...]], batch: int, threads: int) -> str:
    return f"""# The flows

Made by `python benchmarks/families.py` from the registry, the YAML files in `conf/flow/` and a measurement.

## What they promise

Every flow is a bijection that knows its log-determinant, in both directions and under every condition; the tests in
`tests/models/flows/test_laws.py` hold it to that. *Smooth in x*: C² behind a smooth activation, so that the score has
no jumps and score losses see all of it. *Derivatives*: `twice` can be trained on the score by double backward, any by
`loss.gradient=directional`, `forward mode` also by `loss.gradient=forward_mode`. *Inverse*: `to rounding`, or how far
the inverse of z may lie from x, and how it is found. *`inject`*: how (σ, c) may enter the nets.

{markdown(PROMISES, promised)}
## What they cost

{batch} digits (8×8), default settings, float32, {threads} CPU thread{"s" * (threads > 1)}, \
torch {torch.__version__.split("+")[0]}.

A forward pass is the flow alone, data → base with its log-determinant, without grad; the rest in multiples of it.
log_prob includes whitening and the embedding of (σ, c); the score is the gradient of log_prob in x; the inverse is
base → data with its log-determinant.

{markdown(COSTS, costs)}"""


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def promises(name: str) -> tuple[str, ...]:
    """A row of the table with the columns PROMISES."""
    component = registry.resolve("flow", name)
    taken = {kind: flow for kind, shape in KINDS.items() if (flow := built(name, shape))}
    flow = next(iter(taken.values()))
    modes = typing.get_args(typing.get_type_hints(component.__init__).get("inject"))
    default = defaults("flow", name).get("inject")
    derivatives = [
        "twice" if flow.twice_differentiable else "once",
        *(["forward mode"] if flow.forward_differentiable else []),
    ]
    exactness = "to rounding" if flow.inverse_error == 0 else f"to {flow.inverse_error:.1g}"
    return (
        f"`{name}`",
        ", ".join(taken),
        "yes" if flow.smooth else "no",
        ", ".join(derivatives),
        "identity" if flow.identity_at_start else "near the identity",
        f"{exactness}, {flow.inverse_by}",
        ", ".join(f"**{mode}**" if mode == default else mode for mode in modes) or "its own way",
    )


def built(name: str, shape: tuple[int, ...]) -> Flow | None:
    """The flow at its default settings with a smooth activation, or None if it refuses samples of this shape."""
    activation = registry.create("activation", "softplus")
    try:
        return registry.create("flow", name, shape=shape, embed_dim=EMBED, activation=activation, token_dim=0)
    except ConfigurationError:
        return None


def cost(name: str, batch: int, seconds: float) -> tuple[str, ...]:
    """A row of the table with the columns COSTS."""
    torch.manual_seed(0)
    engine = flowdiff.build(f"flow={name}", f"dataset.batch_size={batch}", "accelerator=cpu", "logger=csv")
    engine.measure()
    network = engine.denoiser.network.eval().requires_grad_(False)
    for p in network.flow.parameters():
        p.add_(GAIN * torch.randn_like(p) / math.sqrt(p[0].numel() if p.ndim > 1 else 1))
    chosen = engine.data.train[:batch]
    with torch.no_grad():
        cond, sigma = engine.conditioner(chosen.label), engine.sigma_sampler(batch)
        x0 = engine.data.to_model(chosen.x)
        x = x0 + sigma.view(-1, *[1] * (x0.ndim - 1)) * torch.randn_like(x0)
        y, e = network.whitening(x, sigma)[0], network._embed(sigma, cond)
        z = network.flow(y, e)[0]
    functions = {
        "forward": lambda: network.flow(y, e),
        "log_prob": lambda: network.log_prob(x, sigma, cond),
        "score": lambda: network(x, sigma, cond),
        "inverse": lambda: network.flow.inverse(z, e),
    }
    with torch.no_grad():  # the score enables gradients itself
        forward, *others = median_seconds(functions, rounds=3, warmup=1, seconds=seconds).values()
    times = (f"{1e3 * forward:.1f} ms", *(f"{other / forward:.1f} ×" for other in others))
    return (f"`{name}`", f"{sum(p.numel() for p in network.parameters()):,}", *times)


if __name__ == "__main__":
    main()
