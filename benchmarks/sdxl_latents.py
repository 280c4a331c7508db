"""The cost of flows on latents of SDXL's size, (4, 64, 64), each beside a UNet with as many parameters.

    python benchmarks/sdxl_latents.py [--device cpu] [--batch 4] [--threads 1] [--seconds 5] [--output FOLDER]

The latents are random, so no autoencoder is needed. A training step is the loss, its backward pass and the optimiser's
step in float32: with the denoising loss (double backward), and for flows also with the likelihood. A score evaluation
is one call in eval mode. The functions of one model take turns, and times are medians of at least three calls. On one
CPU thread the clock counts processor time, so that other work on the machine changes little. MiB are the peak of the
allocated memory, with weights and Adam's moments. The new rows replace this device's rows in FOLDER/results.csv, and
the table between the two marks of FOLDER/README.md is written again from that file.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import re
import time
import warnings
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import median_seconds, peak_memory
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
STEP = 8  # the UNet's widths are multiples of its number of groups
COLUMNS = {  # column of the table → how its value is printed
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
    parser.add_argument("--seconds", type=float, default=5.0, help="measuring time per model")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "experiments/sdxl_latents")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    rows = []
    for name in track(FLOWS, "measuring"):
        rows.append(measured(name, [*FLOWS[name], "whitening=dct"], given))
        widths = widths_for(int(rows[-1]["parameters"]))
        rows.append(measured(f"unet {widths}", [*UNET, f"network.channels={widths}"], given))
    write(rows, given.output)


def measured(name: str, overrides: list[str], given: argparse.Namespace) -> dict[str, str | float]:
    """A row of the table: one model."""
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

    @torch.no_grad()  # a flow's score enables gradients itself
    def score() -> None:
        denoiser.eval().score(x0 + noise, sigma)
        denoiser.train()

    functions: dict[str, Callable[[], None]] = {f"{loss} step": lambda loss=loss: step(loss) for loss in losses}
    functions["score"] = score
    parameters = sum(p.numel() for p in denoiser.parameters())
    row: dict[str, str | float] = {
        "device": device_name(given.device),
        "batch": given.batch,
        "model": name,
        "parameters": parameters,
    }
    clock = time.process_time if given.device == "cpu" and given.threads == 1 else time.perf_counter
    times = median_seconds(functions, rounds=3, warmup=1, seconds=given.seconds, clock=clock, device=given.device)
    for task, call in functions.items():
        optimizer.zero_grad()
        held = 4 * parameters * (3 if "step" in task else 1) / 2**20  # the weights; in a step also Adam's two moments
        row[f"{task} s"] = times[task]
        row[f"{task} MiB"] = held + peak_memory(call, given.device)
    return row


def settings_of(overrides: list[str]) -> dict:
    composed = config.compose([*overrides, "conditioner=none", "accelerator=cpu", "logger=csv"])
    config.check(composed)
    return config.resolved(composed)


def assembled(settings: dict) -> Denoiser:
    """The unconditional model of latents that a config describes; its whitening is fitted to random latents."""
    parts = {"shape": SHAPE, "cond_dim": 0, "token_dim": 0, "num_classes": None}
    for group in ("activation", "whitening", "flow"):
        if group in settings:
            parts[group] = create(group, settings[group], **parts, embed_dim=settings["network"].get("embed_dim"))
    if "whitening" in parts:
        parts["whitening"].fit([torch.randn(64, *SHAPE)])
    return Denoiser(create("network", settings["network"], **parts), create("scaling", settings["scaling"]))


def widths_for(parameters: int) -> list[int]:
    """Widths [w, 2w, 4w, v] of a UNet that has nearly as many parameters; w is the one that v = 4w would need."""
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


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device != "cpu" else "cpu"


def write(rows: list[dict], folder: Path) -> None:
    """Print the rows, write them over this device's rows in results.csv, and that file's table into README.md."""
    table = Table(title=f"latents {SHAPE}", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if COLUMNS[column] is str else "right")
    for row in rows:
        table.add_row(*printed(row))
    Console(width=180).print(table)
    file, readme = folder / "results.csv", folder / "README.md"
    old = list(csv.DictReader(file.open())) if file.is_file() else []
    rows = [*(row for row in old if row["device"] != rows[0]["device"]), *rows]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)
    lines = [tuple(COLUMNS), tuple("---" if show is str else "---:" for show in COLUMNS.values()), *map(printed, rows)]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    readme.write_text(MARKS.sub(lambda found: found[1] + markdown + found[2], readme.read_text()))


def printed(row: dict) -> tuple[str, ...]:
    return tuple(show(row[column]) if row.get(column) not in (None, "") else "" for column, show in COLUMNS.items())


if __name__ == "__main__":
    main()
