"""`flowdiff ema RUN`: averages of a run's weights of any length, each as a run folder, or measured side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FAR = 0.05  # relative error of a profile from which on a warning is due
SHOWN = ("test_loss", "fd_", "fid", "precision", "recall", "bpd", "nats_per_dim", "latent_nats_per_dim")


def main(argv: Sequence[str] | None = None) -> int:
    """List the averages of a run, write some as run folders, or measure them."""
    parser = argparse.ArgumentParser(prog="flowdiff ema", description="Averages of the weights of a trained run.")
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--sigma-rel", type=float, nargs="+", default=[], metavar="S", help="widths of power averages")
    parser.add_argument("--decay", type=float, nargs="+", default=[], metavar="D", help="tracked exponential averages")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: the folder `ema` in RUN)")
    parser.add_argument("--evaluate", action="store_true", help="measure all averages, and write ema.csv in RUN")
    given = parser.parse_args(argv)

    from flowdiff.errors import ConfigurationError
    from flowdiff.training.averages import WIDEST, Exponential, Power
    from flowdiff.training.posthoc import Averages

    for width in given.sigma_rel:
        if not 0 < width < WIDEST:
            raise ConfigurationError(
                f"--sigma-rel {width:g} is the width of no power average: give a number above 0 and below {WIDEST:.4f}."
            )
    averages = Averages(given.run)
    if given.evaluate:
        _show(averages.compare(given.sigma_rel))
        return 0
    if not given.sigma_rel and not given.decay:
        kept: dict[float, int] = {}
        for snapshot in averages.snapshots:
            kept[snapshot.sigma_rel] = kept.get(snapshot.sigma_rel, 0) + 1
        print(f"tracked at step {averages.step:,}: {', '.join(averages.tracked) or 'nothing'}")
        print("snapshots: " + (", ".join(f"{n} of sigma_rel={width:g}" for width, n in kept.items()) or "none"))
        return 0
    out = Path(given.out) if given.out else averages.folder.averages
    for decay in given.decay:
        name = Exponential(decay).name
        print(f"Wrote the run {averages.write(averages.exponential(decay), name, out / name)} to {out / name}")
    for width in given.sigma_rel:
        name = Power(width).name
        weights, error = averages.power(width)
        identity = averages.write(weights, name, out / name)
        print(f"Wrote the run {identity} to {out / name}; its profile is off by {error:.2g} of its size")
        if error > FAR:
            print(f"This is far: the snapshots do not resolve {name}; train with more of them, or track this width.")
    return 0


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the metrics side by side."""
    from rich.console import Console
    from rich.table import Table

    every = dict.fromkeys(key for row in rows for key in row)
    keys = [key for key in every if key.startswith(SHOWN) and not key.endswith(("_se", "_sd", "_floor"))]
    table = Table()
    table.add_column("average")
    for key in keys:
        table.add_column(key, justify="right")
    for row in rows:
        cells = [row.get(key) for key in keys]
        table.add_row(str(row["average"]), *("–" if cell is None else f"{cell:.4g}" for cell in cells))
    Console().print(table)
