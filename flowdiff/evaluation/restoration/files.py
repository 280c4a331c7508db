"""The files of a restoration: its picture, its arrays and its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowdiff.data.base import DataModule
from flowdiff.evaluation.pictures import plots
from flowdiff.evaluation.pictures.drawing import points_of
from flowdiff.evaluation.restoration.restore import Restoration
from flowdiff.runs.files import whole, write_whole

SHOWN_DRAWS = 4  # columns of the picture
SHOWN_ROWS = 12  # rows of the picture, at most


def write(found: Restoration, data: DataModule, title: str, out: Path) -> None:
    """Write restored.png, restored.npz and restored.json into a folder.

    restored.npz holds truth and measured (N, …), draws (N, K, …), mean and std (N, …), in the unit of the data.
    """
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / "restored.png") as path:
        if found.truth.ndim == 4:
            _draw(found, data, title, path)
        else:
            plots.scatter(found.draws.x[0].cpu(), points_of(data), path, title=f"{title}: draws of the first sample")
    arrays: dict[str, Any] = {
        "truth": found.truth.cpu().numpy(),
        "measured": found.y.cpu().numpy(),
        "draws": found.draws.x.cpu().numpy(),
        "mean": found.mean.cpu().numpy(),
        "std": found.std.cpu().numpy(),
    }
    with whole(out / "restored.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_whole(out / "restored.json", json.dumps(found.numbers(), indent=2) + "\n")


def _draw(found: Restoration, data: DataModule, title: str, path: Path) -> None:
    def pictures(x: Tensor) -> Tensor:
        return data.to_uint8(x[:SHOWN_ROWS].cpu())

    draws = found.draws.x[:SHOWN_ROWS]
    shown = min(SHOWN_DRAWS, draws.shape[1])
    columns = [("truth", pictures(found.truth)), ("measured", pictures(found.shown))]
    columns += [(f"draw {k + 1}", pictures(draws[:, k])) for k in range(shown)]
    columns.append(("mean", pictures(found.mean)))
    deviation = found.std[:SHOWN_ROWS].cpu().mean(1, keepdim=True)  # over the channels
    most = float(deviation.max())
    levels = (255 * deviation / max(most, 1e-12)).round().to(torch.uint8)
    columns.append((f"std, 0–{most:.2g}", plots.coloured(levels)))
    plots.columns(columns, path, title=title)
