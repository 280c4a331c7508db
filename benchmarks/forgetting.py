"""What runs of experiment=lora_digits have learned of the new classes, and forgotten of the old ones.

    python benchmarks/forgetting.py outputs/lora_digits_base multirun/lora_digits

For every run below the folders: bits/dim of the test images of the new classes, those of the run's own data, and of all
other classes; and the part of the base's parameters that its checkpoint holds. The runs are sorted by it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import flowdiff
from flowdiff.data.base import DataModule
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation.densities.likelihood import bits_per_dim
from flowdiff.registry import completed, create
from flowdiff.runs.run_folder import RunFolder

NEW = (8, 9)


def digits(classes: list[int]) -> DataModule:
    data: DataModule = create("dataset", {**completed("dataset", {"name": "digits"}), "classes": classes})
    data.setup()
    return data


def bits(model: ConditionedDenoiser, data: DataModule) -> tuple[float, float]:
    found = bits_per_dim(model, data, model.sampling.schedule.sigma_min, seed=0, batch_size=250)
    return found.mean, found.standard_error


def share_held(folder: RunFolder, model: ConditionedDenoiser) -> float:
    """Numbers in the weights of the checkpoint, relative to those of the model."""
    state = torch.load(folder.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    held = sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor))
    return held / sum(value.numel() for value in model.state_dict().values() if isinstance(value, torch.Tensor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    given = parser.parse_args()
    new, old = digits(list(NEW)), digits([k for k in range(10) if k not in NEW])
    rows = []
    for file in sorted(path for folder in given.folders for path in folder.rglob("config.yaml")):
        folder = RunFolder(file.parent)
        config, model = folder.config(), flowdiff.load(file.parent)
        node = config.get("adapter", {"name": "none"})
        rows.append(
            {
                "run": str(folder.path),
                "adapter": f"{node['name']} {node.get('rank', '')}".strip(),
                "seed": config["seed"],
                "held": share_held(folder, model),
                "new": bits(model, new),
                "old": bits(model, old),
            }
        )
    for row in sorted(rows, key=lambda row: (row["adapter"], row["held"], row["seed"])):
        numbers = "  ".join(f"{name} {row[name][0]:.3f} ± {row[name][1]:.3f}" for name in ("new", "old"))
        print(f"{row['adapter']:10}  seed {row['seed']}  held {row['held']:6.1%}  {numbers}  {row['run']}")
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
