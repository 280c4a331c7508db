"""The cost of the gate: training step and score of flows with and without it, on the digits at default settings.

    python benchmarks/gate.py [flows] [--loss nll] [--batch 256] [--rounds 250] [--json FILE]

Three models are measured in one process with one thread: one with the gate, and two without it. A round times each
once, in random order. A ratio is that of the medians over all rounds of the processor time, because other programs on
the machine take no part in it; the two models without the gate are taken together, and the ratio of one to the other
says how far a ratio can be trusted.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import flowdiff
from flowdiff.training.engine import Engine

LIMIT = 1.02
FLOWS = ("realnvp", "tarflow", "patchwise", "linear_activation")
WARMUP = 5  # rounds that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flows", nargs="*", default=FLOWS)
    parser.add_argument("--loss", default="nll")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=250)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    found = {flow: costs(flow, given.loss, given.batch, given.rounds) for flow in given.flows}
    table = Table(title=f"with / without the gate, loss={given.loss}; limit {LIMIT}", title_justify="left")
    table.add_column("flow")
    for quantity in ("training step", "score"):
        table.add_column(quantity, justify="right")
        table.add_column("without / without", justify="right")
    for flow, ratios in found.items():
        table.add_row(flow, *(cell for ratio in ratios.values() for cell in shown(ratio)))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def costs(flow: str, loss: str, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """The ratios of a training step and of a score: with the gate over without, and without over without."""
    engines = [engine(flow, loss, batch, gate) for gate in (True, False, False)]
    steps, scores = zip(*(calls(made, batch) for made in engines), strict=True)
    return {"training step": ratios(steps, rounds), "score": ratios(scores, rounds)}


def engine(flow: str, loss: str, batch: int, gate: bool) -> Engine:
    torch.manual_seed(0)
    settings = (f"flow={flow}", f"loss={loss}", f"dataset.batch_size={batch}", f"network.gate={str(gate).lower()}")
    made = flowdiff.build("dataset=digits", "logger=csv", "accelerator=cpu", *settings)
    made.measure()
    return made


def calls(engine: Engine, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step (loss, its gradients and AdamW) and a score of one batch."""
    data = engine.data.train[torch.arange(batch)]
    x0, sigma, noise, _ = engine.loss_inputs(data, 0)
    optimizer = engine.optimizer.make([p for p in engine.parameters() if p.requires_grad])
    with torch.no_grad():
        cond = engine.conditioner(data.label)
    noised = x0 + sigma.view(-1, *[1] * (x0.ndim - 1)) * noise

    def step() -> None:
        engine.train()
        optimizer.zero_grad()
        engine.loss(engine.denoiser.denoiser, *engine.loss_inputs(data, 0)).loss.mean().backward()
        optimizer.step()

    def score() -> None:
        engine.eval()
        engine.denoiser.score(noised, sigma, cond)

    return step, score


def ratios(functions: Sequence[Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median processor time of the first function over that of the other two, and of the second over the third."""
    seconds: list[list[float]] = [[] for _ in functions]
    order = list(range(len(functions)))
    draw = random.Random(0)
    for _ in range(WARMUP + rounds):
        draw.shuffle(order)
        for i in order:
            began = time.process_time()
            functions[i]()
            seconds[i].append(time.process_time() - began)
    gated, plain, again = (found[WARMUP:] for found in seconds)
    median = statistics.median
    return {"gate": median(gated) / median(plain + again), "control": median(plain) / median(again)}


def shown(found: dict[str, float]) -> tuple[str, str]:
    colour = "green" if found["gate"] <= LIMIT else "red"
    return f"[{colour}]{found['gate']:.3f}[/]", f"{found['control']:.3f}"


if __name__ == "__main__":
    main()
