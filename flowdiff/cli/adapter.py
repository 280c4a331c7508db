"""`flowdiff adapter list|extract|merge`: adapters of run folders, and the files of peft."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.identity import id_of_folder, label_of_folder
from flowdiff.runs.run_folder import Label, RunFolder

if TYPE_CHECKING:
    from flowdiff.training.assembly import ModelParts


def main(argv: Sequence[str] | None = None) -> int:
    """List adapters, write one in peft's files, or write the run of a base with an adapter in its weights."""
    parser = argparse.ArgumentParser(prog="flowdiff adapter", description="Adapters of trained runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,extract,merge}")
    listing = commands.add_parser("list", help="the adapters below a folder, with their bases")
    listing.add_argument("folder", metavar="FOLDER", nargs="?", default="outputs", help="default: outputs")
    extracting = commands.add_parser("extract", help="write the adapter of a run of adapter=lora in peft's files")
    extracting.add_argument("run", metavar="RUN", help="the run folder")
    extracting.add_argument("--out", metavar="DIR", help="where to write (default: the folder `adapter` in RUN)")
    merging = commands.add_parser("merge", help="write a run folder whose model has adapters in its weights")
    merging.add_argument(
        "adapters", metavar="ADAPTER", nargs="+", help="a run of an adapter, or a folder of peft's files"
    )
    merging.add_argument("--base", metavar="RUN", help="the run that they were trained on, if all are files of peft")
    merging.add_argument("--weights", type=float, nargs="+", metavar="W", help="a number for each (default: 1)")
    merging.add_argument("--out", metavar="DIR", required=True, help="the new run folder")
    given = parser.parse_args(argv)
    if given.command == "list":
        return _list(Path(given.folder))
    if given.command == "extract":
        return _extract(given.run, given.out)
    weights = given.weights or [1.0] * len(given.adapters)
    if len(weights) != len(given.adapters):
        raise ConfigurationError(
            f"--weights gives {len(weights)} numbers for {len(given.adapters)} adapters: give one for each."
        )
    return _merge(given.adapters, weights, given.base, Path(given.out))


def _list(folder: Path) -> int:
    """Print a line for each run of an adapter."""
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder: give a folder that contains runs.")
    found = 0
    for file in sorted(folder.rglob("config.yaml")):
        run = RunFolder(file.parent)
        try:
            node = run.config().get("adapter", {})
        except RunError:
            continue
        if not node.get("run"):
            continue
        found += 1
        base = RunFolder(node["run"])
        there = id_of_folder(base) if base.config_file.is_file() else "missing"
        rank = f" rank {node['rank']}" if "rank" in node else ""
        state = "" if run.is_complete else ", not complete"
        print(f"{run.path}: {node['name']}{rank} on {node['run']} ({there}){state}")
    if not found:
        print(f"{folder} contains no run of an adapter.")
    return 0


def _extract(run: str, out: str | None) -> int:
    """Write the adapter of a run in peft's files."""
    from flowdiff.models.adapters import peft_format
    from flowdiff.models.adapters.lora import LoRA
    from flowdiff.training.assembly import load_unmerged

    parts, _ = load_unmerged(run)
    if parts.base is None or not isinstance(parts.adapter, LoRA):
        raise RunError(f"run={run} is not a run of adapter=lora, and peft's files hold nothing else: give one.")
    folder = Path(run) / "adapter" if out is None else Path(out)
    peft_format.write(parts.denoiser, parts.adapter, folder, parts.base.name)
    print(f"Wrote {peft_format.CONFIG} and {peft_format.WEIGHTS} to {folder}")
    return 0


def _merge(adapters: Sequence[str], weights: Sequence[float], base: str | None, out: Path) -> int:
    """Write the run of the merged model: the configuration of the first adapter's run, or of the base."""
    import torch

    from flowdiff import config
    from flowdiff.models.adapters import peft_format
    from flowdiff.training.assembly import load_parts

    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"--out {out} is not empty: give a new folder.")
    runs = [RunFolder.open(one) for one in adapters if not peft_format.is_adapter(Path(one))]
    for run in runs:
        if not run.config().get("adapter", {}).get("run"):
            raise RunError(f"{run.path} is not a run of an adapter: give a run of adapter=lora, or files of peft.")
        if run.config()["adapter"]["name"] == "control":
            raise RunError(
                f"{run.path} is a control, whose nets have no place in the weights of its base: sample it as it is, or "
                "with adapters=[…]."
            )
    if not runs and base is None:
        raise ConfigurationError(f"{adapters[0]} does not hold its base: give --base <the run that it was trained on>.")
    trained_on = base or runs[0].config()["adapter"]["run"]
    run = runs[0] if runs else RunFolder.open(str(base))
    given = [{"run": one, "weight": weight} for one, weight in zip(adapters, weights, strict=True)]
    parts: ModelParts = load_parts(trained_on, adapters=given)
    settings = config.of_run(run)
    settings["adapter"] = {"name": "none"}
    settings.get("hashed_as", {}).pop("adapter.run", None)
    label = label_of_folder(run)
    sum_of = " + ".join(f"{weight:g}·{Path(one).name}" for one, weight in zip(adapters, weights, strict=True))
    state = {f"denoiser.{key}": value for key, value in parts.denoiser.state_dict().items()}
    identity = _identity(state)
    merged = RunFolder(out)
    merged.write_config(settings)
    merged.write_label(Label(identity, f"{label.name} merged: {sum_of}", None, label.overrides))
    torch.save({"state_dict": state, "global_step": 0}, merged.checkpoint)
    print(f"Wrote the run {identity} to {out}")
    return 0


def _identity(weights: dict[str, object]) -> str:
    """The id of a run that was not trained but merged."""
    import torch

    from flowdiff.digests import weight_hash

    return weight_hash({key: value for key, value in weights.items() if isinstance(value, torch.Tensor)})[:8]
