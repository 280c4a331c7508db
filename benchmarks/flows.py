"""How fast flows are: beside zuko, nflows and normflows at equal size; and the cost of a score and of its losses.

    pip install -e '.[bench]'
    python benchmarks/flows.py [--batch 256] [--threads 1] [--rounds 60] [--device cpu] [--json FILE]

The first comparison (benchmarks/other_flows.py) uses 64 dimensions, float32 and a context of 16 numbers. log_prob and
the inverse run without grad and include their log-determinants; a training step is −log p, its backward pass and Adam.
A package that is not installed is left out.

The second comparison takes each flow at its default settings on the digits with their classes. It shows the score, and
the step of the denoising loss (forward and backward) by double backward and by the directional form, in multiples of a
log_prob without grad. On a GPU the directional step is compiled.

The functions of a comparison take turns in one process, and times are medians. Peak memory is the most that the
allocator holds during a step, less what it holds before.
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
from measuring import median_seconds, peak_memory
from other_flows import CONTEXT, DIM, HIDDEN, LAYERS, PACKAGES, installed
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import flowdiff
from flowdiff.training.engine import Engine

MIN_RATIO = 1.0  # limit: time of theirs / ours, at least
MAX_COSTS = {  # limits: at most
    "score / log_prob": 2.5,
    "double-backward step / log_prob": 7.5,
    "directional / double-backward step": 1.3,
    "directional / double-backward peak memory": 0.7,
}
FLOWS = ("realnvp", "spline", "maf", "linear_activation", "tarflow")
WITH_ATTENTION = ("tarflow",)  # the directional form is made for these: its limits apply to them only
WARMUP = 10


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
        print(f"{name} is left out, because it is not installed: pip install -e '.[bench]'")

    families = {family: compare(family, packages, given) for family in LAYERS}
    console.print(size_table(families), speed_table(families), sep="\n")
    costs = {flow: cost(flow, given) for flow in FLOWS}
    console.print(cost_table(costs))
    missed = [f"{what} {value:.3f}" for what, value, met in verdicts(families, costs) if not met]
    console.print("limits not met: " + "; ".join(missed) if missed else "all limits are met")
    if given.json:
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        about = machine | {"device": given.device, "threads": given.threads, "torch": torch.__version__}
        limits = {"theirs / ours, at least": MIN_RATIO}
        limits |= {f"{quantity}, at most": limit for quantity, limit in MAX_COSTS.items()}
        results = {"batch": given.batch, "against others": families, "cost": costs, "limits": limits, "missed": missed}
        given.json.write_text(json.dumps(about | results, indent=2) + "\n")


def verdicts(families: dict[str, dict], costs: dict[str, dict[str, float]]) -> Iterator[tuple[str, float, bool]]:
    """(quantity, its value, whether it meets its limit), for every quantity that has a limit."""
    for family, found in families.items():
        for task, ratios in found["theirs / ours"].items():
            for name, ratio in ratios.items():
                yield f"{family} {task} of {name} / ours", ratio, ratio >= MIN_RATIO
    for flow, found in costs.items():
        for quantity, limit in MAX_COSTS.items():
            if has_limit(flow, quantity):
                yield f"{flow} {quantity}", found[quantity], found[quantity] <= limit


def has_limit(flow: str, quantity: str) -> bool:
    return not quantity.startswith("directional") or flow in WITH_ATTENTION


def compare(family: str, packages: dict[str, Callable[[str], nn.Module]], given: argparse.Namespace) -> dict:
    """One family in each package: its parameters, and milliseconds of log_prob, inverse and training step."""
    torch.manual_seed(0)
    models = {name: make(family).to(given.device) for name, make in packages.items()}
    x = torch.randn(given.batch, DIM, device=given.device)
    c = torch.randn(given.batch, CONTEXT, device=given.device)
    for name, model in models.items():
        check_inverse(f"{family} of {name}", model, x, c)
    times = {
        "log_prob": milliseconds({n: no_grad(log_prob, m, x, c) for n, m in models.items()}, given, given.rounds),
        "inverse": milliseconds({n: no_grad(m.inverse, x, c) for n, m in models.items()}, given, given.rounds),
        "training step": milliseconds({n: training_step(m, x, c) for n, m in models.items()}, given, given.rounds),
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
    """Make sure that a model is a flow, whose two directions cancel."""
    z, logdet = model(x, c)
    back, inverse_logdet = model.inverse(z, c)
    error = max(float((back - x).abs().max()), float((inverse_logdet + logdet).abs().max()))
    if not error < 1e-2:
        raise SystemExit(f"{what} is not a flow: its two directions differ by {error:.2g}.")


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


def milliseconds(functions: dict[str, Callable[[], None]], given: argparse.Namespace, rounds: int) -> dict[str, float]:
    seconds = median_seconds(functions, rounds=rounds, warmup=WARMUP, device=given.device)
    return {name: 1e3 * value for name, value in seconds.items()}


def cost(flow: str, given: argparse.Namespace) -> dict[str, float]:
    """The quantities of MAX_COSTS for one flow, and the milliseconds and MiB that they are ratios of."""
    accelerated = ["accelerator.compile=true"] if given.device != "cpu" else []
    options = [f"flow={flow}", f"dataset.batch_size={given.batch}"]
    double = engine(*options, given=given)
    directional = engine(*options, "loss.gradient=directional", *accelerated, given=given)
    x0, label = double.data.to_model(double.data.train[: given.batch].x), double.data.train[: given.batch].label
    x0, label = x0.to(given.device), label.to(given.device)
    noise, sigma = torch.randn_like(x0), double.sigma_sampler(len(x0)).to(given.device)
    noised = x0 + sigma.view(-1, *[1] * (x0.ndim - 1)) * noise
    evaluated = engine(*options, given=given).eval()

    def step(trained: Engine) -> None:
        trained.zero_grad()
        loss = trained.loss(trained.denoiser.denoiser, x0, sigma, noise, trained.conditioner(label))
        loss.loss.mean().backward()

    functions = {
        "log_prob": no_grad(lambda: evaluated.denoiser.log_prob(noised, sigma, evaluated.conditioner(label))),
        "score": lambda: evaluated.denoiser.score(noised, sigma, evaluated.conditioner(label)),
        "double-backward step": lambda: step(double),
        "directional step": lambda: step(directional),
    }
    ms = milliseconds(functions, given, given.rounds // 2)
    peak = {name: peak_memory(functions[name], given.device) for name in ("double-backward step", "directional step")}
    return {
        "score / log_prob": ms["score"] / ms["log_prob"],
        "double-backward step / log_prob": ms["double-backward step"] / ms["log_prob"],
        "directional / double-backward step": ms["directional step"] / ms["double-backward step"],
        "directional / double-backward peak memory": peak["directional step"] / peak["double-backward step"],
        **{f"{name} ms": value for name, value in ms.items()},
        **{f"{name} peak MiB": value for name, value in peak.items()},
    }


def engine(*overrides: str, given: argparse.Namespace) -> Engine:
    """An engine on the digits, measured and in training mode."""
    torch.manual_seed(0)
    made = flowdiff.build("loss=denoising", "logger=csv", "accelerator=cpu", *overrides)
    made.measure()
    return made.to(given.device).train()


def size_table(families: dict[str, dict]) -> Table:
    table = Table(title=f"parameters; every net has three hidden layers of {HIDDEN} units", title_justify="left")
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
    table = Table(title=f"time of theirs / ours; limit: at least {MIN_RATIO:.1f}", title_justify="left")
    table.add_column("family")
    table.add_column("task")
    table.add_column("flowdiff", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for family, found in families.items():
        for task, ratios in found["theirs / ours"].items():
            ours = f"{found['milliseconds'][task]['flowdiff']:.2f} ms"
            table.add_row(family, task, ours, *(verdict(ratios[n], ratios[n] >= MIN_RATIO) for n in names))
    return table


def cost_table(costs: dict[str, dict[str, float]]) -> Table:
    table = Table(title="cost on the digits at default settings; in brackets: no limit applies", title_justify="left")
    table.add_column("flow")
    table.add_column("log_prob", justify="right")
    for quantity, limit in MAX_COSTS.items():
        table.add_column(f"{quantity} (≤ {limit})", justify="right")
    for flow, found in costs.items():
        cells = []
        for quantity, limit in MAX_COSTS.items():
            value = found[quantity]
            cells.append(verdict(value, value <= limit) if has_limit(flow, quantity) else f"({value:.2f} ×)")
        table.add_row(flow, f"{found['log_prob ms']:.2f} ms", *cells)
    return table


def verdict(value: float, met: bool) -> str:
    return f"[green]{value:.2f} × ✓[/]" if met else f"[red]{value:.2f} × ✗[/]"


if __name__ == "__main__":
    main()
