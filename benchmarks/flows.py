"""How fast flows are: against zuko, nflows and normflows at equal size, and what a score and its losses cost.

    pip install -e '.[bench]'
    python benchmarks/flows.py [--batch 256] [--threads 1] [--rounds 60] [--device cpu] [--json FILE]

Against the others (benchmarks/other_flows.py): 64 dimensions, float32, a context of 16 numbers; log_prob and inverse
without grad, both with their log-determinants; a training step is −log p, backward and Adam. A package that is not
installed is left out. Then each flow at its default settings on the digits, classes given: the score, and the step of
the denoising loss (forward and backward) by double backward and by the directional form, in multiples of a log_prob
without grad. All that is compared takes turns in one process; figures are medians. Peak memory is what the allocator
held at most during a step, beyond what it held before. On a GPU the directional step is compiled.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from other_flows import CONTEXT, DIM, HIDDEN, LAYERS, PACKAGES, installed
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from train_step import interleaved, peak_memory

import flowdiff
from flowdiff.training.engine import Engine

SLOWER = 1.0  # theirs / ours, at least
COSTS = {  # at most
    "score / log_prob": 2.5,
    "double-backward step / log_prob": 7.5,
    "directional / double-backward step": 1.3,
    "directional / double-backward peak memory": 0.7,
}
FLOWS = ("realnvp", "spline", "maf", "linear_activation", "tarflow")
ATTENTIVE = ("tarflow",)  # whom the directional form is for: the limits on it are theirs, others' figures are shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    console = Console(width=160)
    packages = installed()
    for name in PACKAGES.keys() - packages.keys():
        console.print(f"{name} is not installed and left out: pip install -e '.[bench]'")

    families = {family: compare(family, packages, given) for family in LAYERS}
    console.print(size_table(families), speed_table(families), sep="\n")
    costs = {flow: cost(flow, given) for flow in FLOWS}
    console.print(cost_table(costs))
    missed = [f"{what} {value:.3f}" for what, value, reached in verdicts(families, costs) if not reached]
    console.print("not reached: " + "; ".join(missed) if missed else "all reached")
    if given.json:
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        about = machine | {"device": given.device, "threads": given.threads, "torch": torch.__version__}
        limits = {"theirs / ours, at least": SLOWER, **{f"{figure}, at most": limit for figure, limit in COSTS.items()}}
        results = {"batch": given.batch, "against others": families, "cost": costs, "limits": limits, "missed": missed}
        given.json.write_text(json.dumps(about | results, indent=2) + "\n")


def verdicts(families: dict[str, dict], costs: dict[str, dict[str, float]]) -> Iterator[tuple[str, float, bool]]:
    """What is asked, its figure, and whether it is reached."""
    for family, found in families.items():
        for task, ratios in found["theirs / ours"].items():
            for name, ratio in ratios.items():
                yield f"{family} {task} of {name} / ours", ratio, ratio >= SLOWER
    for flow, found in costs.items():
        for figure, limit in COSTS.items():
            if asked_of(flow, figure):
                yield f"{flow} {figure}", found[figure], found[figure] <= limit


def asked_of(flow: str, figure: str) -> bool:
    return not figure.startswith("directional") or flow in ATTENTIVE


def compare(family: str, packages: dict[str, Callable[[str], nn.Module]], given: argparse.Namespace) -> dict:
    """Parameters, and milliseconds of log_prob, inverse and training step, of the family in each package."""
    torch.manual_seed(0)
    models = {name: make(family).to(given.device) for name, make in packages.items()}
    x = torch.randn(given.batch, DIM, device=given.device)
    c = torch.randn(given.batch, CONTEXT, device=given.device)
    for name, model in models.items():
        check_inverse(f"{family} of {name}", model, x, c)
    times = {
        "log_prob": turns({n: no_grad(log_prob, m, x, c) for n, m in models.items()}, given, given.rounds),
        "inverse": turns({n: no_grad(m.inverse, x, c) for n, m in models.items()}, given, given.rounds),
        "training step": turns({n: training_step(m, x, c) for n, m in models.items()}, given, given.rounds),
    }
    return {
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "milliseconds": times,
        "theirs / ours": {
            task: {name: value / ms["flowdiff"] for name, value in ms.items() if name != "flowdiff"}
            for task, ms in times.items()
        },
    }


@torch.no_grad()
def check_inverse(what: str, model: nn.Module, x: Tensor, c: Tensor) -> None:
    """What is compared is a flow: both directions cancel."""
    z, logdet = model(x, c)
    back, inverse_logdet = model.inverse(z, c)
    error = max(float((back - x).abs().max()), float((inverse_logdet + logdet).abs().max()))
    if not error < 1e-2:
        raise SystemExit(f"{what} is not inverted: off by {error:.2g}")


def log_prob(model: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    z, logdet = model(x, c)
    return logdet - 0.5 * z.square().sum(1) - 0.5 * DIM * math.log(2 * math.pi)


def no_grad(function: Callable, *arguments: object) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            function(*arguments)

    return call


def training_step(model: nn.Module, x: Tensor, c: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-5)

    def step() -> None:
        optimizer.zero_grad()
        (-log_prob(model, x, c).mean()).backward()
        optimizer.step()

    return step


def turns(functions: dict[str, Callable[[], None]], given: argparse.Namespace, rounds: int) -> dict[str, float]:
    """Median milliseconds of each, called in turn."""

    def finished(function: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            function()
            if given.device != "cpu":
                torch.cuda.synchronize(given.device)

        return call

    seconds = interleaved({name: finished(function) for name, function in functions.items()}, rounds)
    return {name: 1e3 * value for name, value in seconds.items()}


def cost(flow: str, given: argparse.Namespace) -> dict[str, float]:
    """The limits' figures for a flow at its default settings on the digits, and the milliseconds behind them."""
    accelerated = ["accelerator.compile=true"] if given.device != "cpu" else []
    options = [f"flow={flow}", f"dataset.batch_size={given.batch}"]
    double = engine(*options, given=given)
    directional = engine(*options, "loss.gradient=directional", *accelerated, given=given)
    x0, label = double.data.to_model(double.data.train[: given.batch].x), double.data.train[: given.batch].label
    x0, label = x0.to(given.device), label.to(given.device)
    noise, sigma = torch.randn_like(x0), double.sigma_sampler(len(x0)).to(given.device)
    noised = x0 + sigma.view(-1, *[1] * (x0.ndim - 1)) * noise
    asked = engine(*options, given=given).eval()

    def step(by: Engine) -> None:
        by.zero_grad()
        by.loss(by.denoiser.denoiser, x0, sigma, noise, by.conditioner(label)).loss.mean().backward()

    ways = {
        "log_prob": no_grad(lambda: asked.denoiser.log_prob(noised, sigma, asked.conditioner(label))),
        "score": lambda: asked.denoiser.score(noised, sigma, asked.conditioner(label)),
        "double-backward step": lambda: step(double),
        "directional step": lambda: step(directional),
    }
    ms = turns(ways, given, given.rounds // 2)
    peak = {name: peak_mebibytes(ways[name], given.device) for name in ("double-backward step", "directional step")}
    return {
        "score / log_prob": ms["score"] / ms["log_prob"],
        "double-backward step / log_prob": ms["double-backward step"] / ms["log_prob"],
        "directional / double-backward step": ms["directional step"] / ms["double-backward step"],
        "directional / double-backward peak memory": peak["directional step"] / peak["double-backward step"],
        **{f"{name} ms": value for name, value in ms.items()},
        **{f"{name} peak MiB": value for name, value in peak.items()},
    }


def engine(*overrides: str, given: argparse.Namespace) -> Engine:
    """An engine of the digits in training, with the data's statistics."""
    torch.manual_seed(0)
    made = flowdiff.build("loss=denoising", "logger=csv", "accelerator=cpu", *overrides)
    made.measure()
    return made.to(given.device).train()


def peak_mebibytes(function: Callable[[], None], device: str) -> float:
    if device == "cpu":
        return peak_memory(function)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def size_table(families: dict[str, dict]) -> Table:
    table = Table(title=f"parameters; every net has three hidden layers of {HIDDEN}", title_justify="left")
    table.add_column("family")
    table.add_column("layers", justify="right")
    names = next(iter(families.values()))["parameters"]
    for name in names:
        table.add_column(name, justify="right")
    for family, found in families.items():
        table.add_row(family, str(LAYERS[family]), *(f"{n:,}" for n in found["parameters"].values()))
    return table


def speed_table(families: dict[str, dict]) -> Table:
    names = [n for n in next(iter(families.values()))["parameters"] if n != "flowdiff"]
    table = Table(title=f"time of theirs / ours, at least {SLOWER:.1f} asked", title_justify="left")
    table.add_column("family")
    table.add_column("task")
    table.add_column("flowdiff", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for family, found in families.items():
        for task, ratios in found["theirs / ours"].items():
            ours = f"{found['milliseconds'][task]['flowdiff']:.2f} ms"
            table.add_row(family, task, ours, *(verdict(ratios[n], ratios[n] >= SLOWER) for n in names))
    return table


def cost_table(costs: dict[str, dict[str, float]]) -> Table:
    table = Table(title="cost on the digits at default settings; in brackets: not asked", title_justify="left")
    table.add_column("flow")
    table.add_column("log_prob", justify="right")
    for figure, limit in COSTS.items():
        table.add_column(f"{figure} (≤ {limit})", justify="right")
    for flow, found in costs.items():
        cells = []
        for figure, limit in COSTS.items():
            asked = asked_of(flow, figure)
            cells.append(verdict(found[figure], found[figure] <= limit) if asked else f"({found[figure]:.2f} ×)")
        table.add_row(flow, f"{found['log_prob ms']:.2f} ms", *cells)
    return table


def verdict(value: float, reached: bool) -> str:
    return f"[green]{value:.2f} × ✓[/]" if reached else f"[red]{value:.2f} × ✗[/]"


if __name__ == "__main__":
    main()
