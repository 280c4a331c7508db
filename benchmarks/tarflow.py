"""Three ways to invert tarflow (base → data): token by token with a cache, Jacobi iteration, and the naive loop.

    python benchmarks/tarflow.py [--tokens 64] [--batch 16] [--threads 1] [--json FILE] [key=value of the flow]

The cache keeps keys and values of earlier tokens; the naive loop runs the whole transformer once per token. The ways
take turns in one process, and times are medians. The number of Jacobi sweeps depends on the flow, so the flows range
from close to the identity to far from it: gain·N(0, 1/fan_in) is added to every parameter. At gain 1 that is the spread
of the usual initialisation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.tarflow import Block, TarFlow
from flowdiff.registry import create

EMBED = 128
GAINS = (0.1, 0.5, 1.0)
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="hyperparameters of the flow, e.g. hidden=128")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = {k: yaml.safe_load(v) for k, v in (pair.split("=", 1) for pair in given.overrides)}
    rows = [measure(gain, given.tokens, given.batch, settings) for gain in GAINS]

    table = Table(title=f"inverse of {given.batch} samples of {given.tokens} tokens, seconds", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" for v in row.values()))
    Console(width=160).print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


@torch.no_grad()
def measure(gain: float, tokens: int, batch: int, settings: dict) -> dict[str, float]:
    """Seconds of each way, the speed-up over the naive loop, and the largest difference from the loop's samples."""
    torch.manual_seed(0)
    runtime = {"shape": (12 * tokens,), "patch": 12, "embed_dim": EMBED, "activation": create("activation", "swish")}
    flow = create("flow", "tarflow", **runtime, **settings).eval()
    for p in flow.parameters():
        p.add_(gain * torch.randn_like(p) / (p.shape[-1] if p.ndim > 1 else 1) ** 0.5)
    z, cond = torch.randn(batch, 12 * tokens), Conditioning(torch.randn(batch, EMBED))
    ways = {
        "forward": lambda: flow(z, cond)[0],
        "naive": lambda: naive(flow, z, cond),
        "cache": lambda: inverse(flow, z, cond, "cache"),
        "jacobi": lambda: inverse(flow, z, cond, "jacobi"),
    }
    x = {name: way() for name, way in ways.items()}  # this also warms up
    sweeps = count_sweeps(flow, ways["jacobi"]) / batch
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(ROUNDS):
        for name, way in ways.items():
            if name == "naive" and i >= 2:
                continue  # slow, and steady enough for a median of two
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "gain": gain,
        **median,
        "naive / cache": median["naive"] / median["cache"],
        "naive / jacobi": median["naive"] / median["jacobi"],
        "sweeps per block": sweeps,
        "|cache − naive|": float((x["cache"] - x["naive"]).abs().max()),
        "|jacobi − naive|": float((x["jacobi"] - x["naive"]).abs().max()),
    }


def inverse(flow: TarFlow, z: Tensor, cond: Conditioning, way: str) -> Tensor:
    flow.inverse_method = way
    return flow.inverse(z, cond)[0]


def naive(flow: TarFlow, z: Tensor, cond: Conditioning) -> Tensor:
    e, context = flow.condition(cond)
    u = flow.patches.split(z)
    for block in reversed(flow.blocks):
        u = naive_block(block, u, e, context)
    return flow.patches.join(u)


def naive_block(block: Block, z: Tensor, e: Tensor, context: object) -> Tensor:
    z = block._order(z)
    x = torch.zeros_like(z)
    for i in range(z.shape[1]):
        a, b = block._scale_shift(block.net(x, e, context, True))
        x[:, i] = z[:, i] * a[:, i].exp() + b[:, i]
    return block._order(x)


def count_sweeps(flow: TarFlow, way: Callable[[], Tensor]) -> float:
    """Samples that pass through a block's transformer while `way` runs, summed over its calls; mean over the blocks."""
    sizes: list[int] = []
    hooks = [
        block.net.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0]))) for block in flow.blocks
    ]
    way()
    for hook in hooks:
        hook.remove()
    return sum(sizes) / len(flow.blocks)


if __name__ == "__main__":
    main()
