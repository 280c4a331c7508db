"""Where numbers and pictures go: always `metrics.csv` in the run folder, and W&B or TensorBoard beside it."""

from __future__ import annotations

import csv
import netrc
import os
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from flowdiff.errors import ConfigurationError
from flowdiff.registry import register


class MetricsCSV(Logger):
    """Appends one row per logged step to `metrics.csv`: a column `step`, then one per metric, empty where not measured.

    A resumed run first drops the rows at and after the step it resumes from (`truncate`), so that no step stands twice.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = Path(path)
        self._columns = ["step"]
        if self.path.exists():
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), ["step"])

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass  # config.yaml holds them

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **{k: v for k, v in metrics.items() if k != "epoch"}}
        if len(row) == 1:
            return
        new = [key for key in row if key not in self._columns]
        if new or not self.path.exists():
            self._columns += new
            self._rewrite([*self.rows(), row])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """All rows so far, as text."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def truncate(self, step: int) -> None:
        """Forget the rows with a step greater than `step`."""
        self._rewrite([row for row in self.rows() if int(row["step"]) <= step])

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


class Tracker:
    """Beside metrics.csv: nothing. The base of the loggers that show a run elsewhere."""

    def start(self, folder: Path, run: dict[str, Any]) -> list[Logger]:
        """Open the run's loggers; run holds run_id, name, sweep, tags and config (plain containers)."""
        return []

    def pictures(self, paths: dict[str, Path], step: int) -> None:
        """Show picture files under the given keys."""

    def summary(self, metrics: dict[str, Any]) -> None:
        """Final numbers, beside the last values of the curves."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the run, also after an error."""


@register("logger", "csv")
class CSVOnly(Tracker):
    """metrics.csv and nothing else."""

    def __init__(self):
        pass


@register("logger", "tensorboard")
class TensorBoard(Tracker):
    """TensorBoard event files in `<run folder>/tensorboard`."""

    def __init__(self):
        self._logger = None

    def start(self, folder: Path, run: dict[str, Any]) -> list[Logger]:
        from lightning.pytorch.loggers import TensorBoardLogger

        self._logger = TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)
        return [self._logger]

    def pictures(self, paths: dict[str, Path], step: int) -> None:
        from matplotlib.image import imread

        for key, path in paths.items():
            self._logger.experiment.add_image(key, imread(path)[..., :3], step, dataformats="HWC")

    def finish(self, exit_code: int = 0) -> None:
        if self._logger is not None:
            self._logger.experiment.close()


@register("logger", "wandb")
class WandB(Tracker):
    """Weights & Biases: group = sweep, name = readable overrides, id = run identity, config flattened by W&B.

    mode `auto` is online when an API key is at hand and offline otherwise, never a prompt; upload offline runs later
    with `wandb sync`. Fréchet distances and losses keep their minimum as summary.
    """

    def __init__(self, *, project: str, entity: str | None, mode: Literal["auto", "online", "offline", "disabled"]):
        if mode == "online" and not _has_wandb_key():
            raise ConfigurationError(
                "logger.mode=online needs a W&B API key and there is none: set WANDB_API_KEY or run `wandb login`, or "
                "take logger.mode=offline."
            )
        self.project = project
        self.entity = entity
        self.mode = mode
        self._run = None

    def start(self, folder: Path, run: dict[str, Any]) -> list[Logger]:
        if rank_zero_only.rank != 0:
            return []
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        # create_new makes no global run, so that several runs of one process cannot leak into each other.
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self._resolved_mode(),
            dir=str(folder),
            id=run["run_id"],
            name=run["name"],
            group=run["sweep"],
            tags=run["tags"],
            config=run["config"],
            resume="allow" if self._resolved_mode() == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        # WandbLogger defines its step axis only for a run that it made itself.
        self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        for metric in ("fd_*", "fid", "val_loss"):
            self._run.define_metric(metric, step_metric="trainer/global_step", summary="min")
        return [WandbLogger(experiment=self._run)]

    def pictures(self, paths: dict[str, Path], step: int) -> None:
        if self._run is not None:
            import wandb

            images = {key: wandb.Image(str(path)) for key, path in paths.items()}
            self._run.log({**images, "trainer/global_step": step})

    def summary(self, metrics: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.summary.update(metrics)

    def finish(self, exit_code: int = 0) -> None:
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None

    def _resolved_mode(self) -> str:
        if self.mode != "auto":
            return self.mode
        return "online" if _has_wandb_key() else "offline"


def _has_wandb_key() -> bool:
    """Whether a key lies where `wandb login` puts it or the environment names one; asks nobody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
