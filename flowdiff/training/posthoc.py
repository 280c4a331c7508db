"""Averages of the weights after a training: those that it tracked, and power averages of any width."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowdiff import config as configs
from flowdiff.digests import weight_hash
from flowdiff.errors import RunError
from flowdiff.evaluation.metrics import Metrics
from flowdiff.registry import create
from flowdiff.runs.files import write_whole
from flowdiff.runs.identity import label_of_folder
from flowdiff.runs.run_folder import Label, RunFolder
from flowdiff.runs.undefined import written
from flowdiff.training.assembly import load_unmerged
from flowdiff.training.averages import Exponential, Power, Snapshot, combination
from flowdiff.training.weights import PREFIX, checkpoint_of

TRACKED = "TrackedAverages"  # the callback in a checkpoint
Weights = Mapping[str, Tensor]
"""{name in the checkpoint: value} of the weights that were trained."""


class Averages:
    """The averages of a run.

    Args:
        run: the run folder.

    Raises:
        RunError: there is no checkpoint.
    """

    def __init__(self, run: str | Path):
        self.folder = RunFolder.open(run)
        self.checkpoint = checkpoint_of(self.folder)
        self.step: int = self.checkpoint["global_step"]
        found = {}
        for path in self.folder.averages.glob("*.safetensors"):
            if (named := re.fullmatch(r"([\d.e-]+)-(\d+)", path.stem)) is not None:
                found[Snapshot(float(named[1]), int(named[2]))] = path
        self.snapshots = {key: found[key] for key in sorted(found) if key.step <= self.step}

    @property
    def tracked(self) -> dict[str, Weights]:
        """The averages that were tracked, by their names, at the step of the checkpoint."""
        state = self.checkpoint.get("callbacks", {}).get(TRACKED, {})
        averages: dict[str, Weights] = state.get("averages", {})
        return averages

    def exponential(self, decay: float) -> Weights:
        """A tracked exponential average; RunError if it was not tracked."""
        name = Exponential(decay).name
        if name not in self.tracked:
            others = ", ".join(other for other in self.tracked if other.startswith("decay")) or "none"
            raise RunError(
                f"{self.folder.path} has not tracked {name} (it has tracked {others}): train with "
                f"optimizer.ema.decays=[{decay:g}]."
            )
        return self.tracked[name]

    def power(self, sigma_rel: float) -> tuple[Weights, float]:
        """The power average of a width, combined from snapshots, and the relative error of its profile.

        Raises:
            RunError: the run has kept no snapshots.
        """
        from safetensors.torch import load_file

        if not self.snapshots:
            raise RunError(
                f"{self.folder.path} has kept no snapshots of power averages: train with "
                "optimizer.ema.sigma_rel=[0.05,0.1]."
            )
        weights, error = combination([*self.snapshots], Snapshot(sigma_rel, self.step))
        total: dict[str, Tensor] = {}
        for x, path in zip(weights.tolist(), self.snapshots.values(), strict=True):
            for name, value in load_file(path).items():
                total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + x * value.double()
        dtypes = self.checkpoint["state_dict"]
        return {name: value.to(dtypes[name].dtype) for name, value in total.items()}, error

    def write(self, weights: Weights, name: str, out: Path) -> str:
        """Write a run folder whose model has these weights; its id.

        Args:
            weights: an average.
            name: what it is called, behind the name of the run.
            out: the new folder.

        Raises:
            RunError: the folder is not empty.
        """
        if out.exists() and any(out.iterdir()):
            raise RunError(f"{out} is not empty: give a new folder, so that no file is replaced.")
        state: dict[str, Any] = {**self.checkpoint["state_dict"], **weights}
        identity = weight_hash({key: value for key, value in state.items() if isinstance(value, Tensor)})[:8]
        label = label_of_folder(self.folder)
        folder = RunFolder(out)
        folder.write_config(self.folder.config())
        folder.write_label(Label(identity, f"{label.name} {name}", None, label.overrides))
        kept = [key for key in ("global_step", "adapter_base") if key in self.checkpoint]
        torch.save({key: self.checkpoint[key] for key in kept} | {"state_dict": state}, folder.checkpoint)
        return identity

    def compare(self, widths: Sequence[float]) -> list[dict[str, Any]]:
        """Measure the run's own average, the tracked ones and power averages side by side, as the run was measured.

        Returns:
            A row of each: its name as `average`, and its metrics. It is also written to ema.csv in the run folder.
        """
        parts, _ = load_unmerged(self.folder.path)
        model, settings = parts.denoiser, configs.of_run(self.folder)
        model.levels_file = None  # the levels of schedule=optimal there are those of the run's own average
        parts.data.prepare_data()
        parts.data.setup()
        metrics: Metrics = create("metrics", settings["metrics"], data=parts.data)
        metrics.check(model)
        metrics.check_cache()
        own = f"decay-{parts.optimizer.ema_decay:g} (the run's own)"
        averages: dict[str, Weights] = {own: {}, **self.tracked}
        for width in widths:
            averages.setdefault(Power(width).name, self.power(width)[0])
        rows = []
        for name, weights in averages.items():
            state: dict[str, Any] = {**self.checkpoint["state_dict"], **weights}
            model.load_state_dict({k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)})
            numbers = metrics.evaluate(
                model, lambda n, seed: model.sample(n, seed=seed, batch_size=metrics.batch_size), settings["seed"]
            )
            rows.append({"average": name, **written(numbers)})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.folder.path / "ema.csv", text.getvalue())
        return rows
