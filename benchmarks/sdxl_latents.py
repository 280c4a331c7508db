"""What flows cost on latents of SDXL's size, (4, 64, 64), beside a UNet of as many parameters each.

    python benchmarks/sdxl_latents.py [--device cpu] [--batch 4] [--threads 1] [--seconds 5] [--output FOLDER]

The latents are random, so no autoencoder is needed. A training step is the loss, its backward pass and the optimiser's
step, in float32, of the denoising loss (double backward) and, of flows, of the likelihood; a score evaluation is one
call in eval mode. Ways of one model take turns, figures are medians of at least three. On one CPU thread processor time
is counted, so that other work on the machine changes little. MiB are the most that is held at once, weights and
Adam's moments included. FOLDER/results.csv gets the rows of this device in place of its last ones, and the table in
FOLDER/README.md, between its two marks, is made anew from the file.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import re
import statistics
import time
import warnings
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import torch
from flows import peak_mebibytes
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flowdiff import config
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.registry import create

SHAPE = (4, 64, 64)
FLOWS = {
    "glow": ["flow=glow"],
    "tarflow": ["flow=tarflow"],
    "tarflow, 256 tokens": ["flow=tarflow", "flow.patch=4"],
    "linear_activation, kronecker": ["flow=linear_activation", "flow.linear=kronecker"],
    "linear_activation, 64 reflections": ["flow=linear_activation", "flow.linear=householder", "flow.reflections=64"],
}
UNET = [
    "network=unet",
    "scaling=edm",
    "network.channels=[32,64,128,128]",
    "network.attention=[false,false,true,true]",
]
STEP = 8  # widths of the UNet are multiples of it, its groups
COLUMNS = {  # of the table: how a number is shown
    "device": str,
    "batch": str,
    "model": str,
    "parameters": lambda n: f"{int(n):,}",
    "denoising step s": lambda s: f"{float(s):.3g}",
    "denoising step MiB": lambda m: f"{float(m):,.0f}",
    "nll step s": lambda s: f"{float(s):.3g}",
    "nll step MiB": lambda m: f"{float(m):,.0f}",
    "score s": lambda s: f"{float(s):.3g}",
    "score MiB": lambda m: f"{float(m):,.0f}",
}
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring, per model")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "experiments/sdxl_latents")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    rows = []
    for name in track(FLOWS, "measuring"):
        rows.append(measured(name, [*FLOWS[name], "whitening=dct"], given))
        widths = widths_for(int(rows[-1]["parameters"]))
        rows.append(measured(f"unet {widths}", [*UNET, f"network.channels={widths}"], given))
    keep(rows, given.output)


def measured(name: str, overrides: list[str], given: argparse.Namespace) -> dict[str, str | float]:
    """A row of the table."""
    gc.collect()
    torch.manual_seed(0)
    settings = settings_of(overrides)
    denoiser = assembled(settings).to(given.device)
    x0 = torch.randn(given.batch, *SHAPE, device=given.device)
    sigma = create("sigma_sampler", settings["sigma_sampler"])(given.batch, device=given.device)
    noise = torch.randn_like(x0)
    optimizer = create("optimizer", settings["optimizer"]).make(denoiser.parameters())
    weighting = create("weighting", "edm")
    losses = {"denoising": create("loss", "denoising", weighting=weighting)}
    if denoiser.is_density:
        losses["nll"] = create("loss", "nll")

    def step(loss: str) -> None:
        optimizer.zero_grad()
        losses[loss](denoiser, x0, sigma, noise).loss.mean().backward()
        optimizer.step()

    @torch.no_grad()  # which a flow's score lifts for itself
    def score() -> None:
        denoiser.eval().score(x0 + noise, sigma)
        denoiser.train()

    ways: dict[str, Callable[[], None]] = {f"{loss} step": lambda loss=loss: step(loss) for loss in losses}
    ways["score"] = score
    parameters = sum(p.numel() for p in denoiser.parameters())
    row: dict[str, str | float] = {
        "device": device_name(given.device),
        "batch": given.batch,
        "model": name,
        "parameters": parameters,
    }
    seconds = medians(ways, given)
    for way, call in ways.items():
        optimizer.zero_grad()
        there = 4 * parameters * (3 if "step" in way else 1) / 2**20  # weights, and the two moments
        row[f"{way} s"] = seconds[way]
        row[f"{way} MiB"] = there + peak_mebibytes(call, given.device)
    return row


def settings_of(overrides: list[str]) -> dict:
    composed = config.compose([*overrides, "conditioner=none", "accelerator=cpu", "logger=csv"])
    config.check(composed)
    return config.resolved(composed)


def assembled(settings: dict) -> Denoiser:
    """The unconditional model of latents that a config describes, its whitening fitted to random ones."""
    parts = {"shape": SHAPE, "cond_dim": 0, "token_dim": 0, "num_classes": None}
    for group in ("activation", "whitening", "flow"):
        if group in settings:
            parts[group] = create(group, settings[group], **parts, embed_dim=settings["network"].get("embed_dim"))
    if "whitening" in parts:
        parts["whitening"].fit([torch.randn(64, *SHAPE)])
    return Denoiser(create("network", settings["network"], **parts), create("scaling", settings["scaling"]))


def widths_for(parameters: int) -> list[int]:
    """The widths [w, 2w, 4w, v] of a UNet of nearly as many parameters, the first no larger than v = 4w would have."""
    node = settings_of(UNET)["network"]

    def count(w: int, v: int) -> int:
        with torch.device("meta"):
            unet = create("network", {**node, "channels": [w, 2 * w, 4 * w, v]}, shape=SHAPE, cond_dim=0)
        return sum(p.numel() for p in unet.parameters())

    w = max(STEP, STEP * math.floor(32 / STEP * math.sqrt(parameters / count(32, 128))))
    last = range(STEP, 16 * w, STEP)
    at = bisect_left(last, parameters, key=lambda v: count(w, v))
    v = min(last[max(at - 1, 0) : at + 1], key=lambda v: abs(count(w, v) - parameters))
    return [w, 2 * w, 4 * w, v]


def medians(ways: dict[str, Callable[[], None]], given: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each, called in turn until the time is up; once unmeasured and three times at least."""
    on_cpu = given.device == "cpu"
    clock = time.process_time if on_cpu and given.threads == 1 else time.perf_counter
    taken: dict[str, list[float]] = {way: [] for way in ways}
    start = time.perf_counter()
    while min(map(len, taken.values())) < 4 or time.perf_counter() - start < given.seconds:
        for way, call in ways.items():
            began = clock()
            call()
            if not on_cpu:
                torch.cuda.synchronize(given.device)
            taken[way].append(clock() - began)
    return {way: statistics.median(values[1:]) for way, values in taken.items()}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device != "cpu" else "cpu"


def keep(rows: list[dict], folder: Path) -> None:
    """Print the rows, put them in the place of this device's in results.csv, and that into README.md."""
    table = Table(title=f"latents {SHAPE}", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if COLUMNS[column] is str else "right")
    for row in rows:
        table.add_row(*shown(row))
    Console(width=180).print(table)
    file, readme = folder / "results.csv", folder / "README.md"
    old = list(csv.DictReader(file.open())) if file.is_file() else []
    rows = [*(row for row in old if row["device"] != rows[0]["device"]), *rows]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)
    lines = [tuple(COLUMNS), tuple("---" if show is str else "---:" for show in COLUMNS.values()), *map(shown, rows)]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    readme.write_text(MARKS.sub(lambda found: found[1] + markdown + found[2], readme.read_text()))


def shown(row: dict) -> tuple[str, ...]:
    return tuple(show(row[column]) if row.get(column) not in (None, "") else "" for column, show in COLUMNS.items())


if __name__ == "__main__":
    main()
