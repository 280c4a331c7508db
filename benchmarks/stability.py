"""The test loss of linear_activation before and after training, by number of layers and by activation.

    python benchmarks/stability.py [--json FILE] [overrides]

The start is the test loss of the untrained model, which behind whitening=zca is the Wiener filter; the end is the test
loss in result.json. A run that is complete in outputs/ is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import flowdiff
from flowdiff import config
from flowdiff.evaluation.denoising import denoising_loss
from flowdiff.runs import identity
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training import run as training

FLOW = "flow=linear_activation"
CASES = [[FLOW, f"flow.n_flows={n}"] for n in (1, 3, 5, 10)] + [
    [FLOW, f"activation={name}"] for name in config.options("activation")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = [measure([*case, *given.overrides]) for case in CASES]
    table = Table(title="test denoising loss, start → end", title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(overrides: list[str]) -> dict[str, str | int | float]:
    composed = config.compose(overrides)
    config.check(composed)
    settings = config.resolved(composed)
    torch.manual_seed(0)
    engine = flowdiff.build(*overrides)
    engine.measure()
    model = engine.denoiser.eval()
    start, _ = denoising_loss(model, engine.data, seed=settings["seed"], batch_size=250, num_levels=4)
    run_id, name = identity.run_id(settings), identity.run_name(overrides)
    folder = RunFolder(Path("outputs") / identity.run_folder(name, run_id))
    if not folder.is_complete:
        training.train(settings, folder, name=name, run_id=run_id, sweep=None, overrides=overrides)
    result = folder.result()
    numbers = result["metrics"]
    return {
        "run": name,
        "start": start,
        "end": numbers["test_loss"],
        "fd_digits_cnn": numbers["fd_digits_cnn"],
        "floor": numbers["fd_digits_cnn_floor"],
        "bpd": numbers["bpd"],
        "parameters": result["parameters"],
        "train seconds": round(result["seconds"]["train"]),
    }


if __name__ == "__main__":
    main()
