"""Where numbers and pictures go beside the run folder's own metrics.csv: W&B, TensorBoard or nowhere."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.loggers.base import Tracker
from flowdiff.registry import register

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

STEP = "trainer/global_step"  # as WandbLogger calls the axis


@register("logger", "wandb")
class WandB(Tracker):
    """Weights & Biases: group = sweep, name = readable overrides, id = run identity, config flattened by W&B.

    mode `auto` is online when an API key is at hand and offline otherwise, never a prompt; `flowdiff sync` uploads
    offline runs later. A run that goes on after a stop is one run there too. Fréchet distances and the validation loss
    keep their minimum beside the final value. checkpoint: last.ckpt becomes an artifact of the run.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        mode: Literal["auto", "online", "offline", "disabled"],
        checkpoint: bool,
    ):
        if mode == "online" and not has_wandb_key():
            raise ConfigurationError(
                "logger.mode=online needs a W&B API key and there is none: set WANDB_API_KEY or run `wandb login`, or "
                "take logger.mode=offline."
            )
        self.project = project
        self.entity = entity
        self.mode = mode
        self.with_checkpoint = checkpoint
        self._run = None
        self._least: dict[str, float] = {}

    def start(self, folder: Path, run: dict[str, Any]) -> list[Logger]:
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        if rank_zero_only.rank != 0:
            return []
        from lightning.pytorch.loggers import WandbLogger

        self._open(folder, run)
        # WandbLogger defines its step axis only for a run that it made itself.
        self._run.define_metric("*", step_metric=STEP, step_sync=True)
        self._run.define_metric("val_loss", step_metric=STEP, summary="min")
        return [WandbLogger(experiment=self._run)]

    def evaluations(self, folder: Path, run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self._open(folder, {**run, "config": None, "resumed": True})
        axis = "evaluation/number"  # the steps of the training are no axis for these
        for key in dict.fromkeys(key for row in rows for key in row if key != "number"):
            self._run.define_metric(f"evaluation/{key}", step_metric=axis, step_sync=False)
        for row in rows:
            self._run.log({f"evaluation/{key}": value for key, value in row.items() if value != ""})
        self.finish()

    def _open(self, folder: Path, run: dict[str, Any]) -> None:
        import wandb

        try:
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
                # Offline this does nothing now, but is what lets `wandb sync` append instead of replacing; a run that
                # begins at step 0 replaces what an earlier attempt has left.
                resume="allow" if run["resumed"] else None,
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise RunError(f"W&B cannot open the run ({reason}): mend it, or take logger.mode=offline.") from error

    def minimise(self, values: Mapping[str, float]) -> None:
        if self._run is not None:
            for name, value in values.items():
                if name not in self._least:  # by its full name: of two patterns that both match, W&B takes either
                    self._run.define_metric(name, step_metric=STEP, summary="min")
                self._least[name] = min(value, self._least.get(name, value))

    def pictures(self, paths: dict[str, Path], step: int) -> None:
        if self._run is not None:
            import wandb

            images = {key: wandb.Image(str(path)) for key, path in paths.items()}
            self._run.log({**images, STEP: step})

    def summary(self, metrics: dict[str, Any]) -> None:
        if self._run is not None:
            # The final value takes the place of the curve's minimum, which goes beside it.
            minima = {f"{key}_min": min(least, metrics[key]) for key, least in self._least.items() if key in metrics}
            self._run.summary.update({**metrics, **minima})

    def checkpoint(self, path: Path) -> None:
        if self._run is not None and self.with_checkpoint:
            import wandb

            artifact = wandb.Artifact(f"checkpoint-{self._run.id}", type="model")
            artifact.add_file(str(path.resolve()), policy="immutable")  # as it lies there: no copy
            self._run.log_artifact(artifact)

    def preempting(self) -> None:
        if self._run is not None:
            self._run.mark_preempting()

    def finish(self, exit_code: int = 0) -> None:
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None

    def _resolved_mode(self) -> str:
        if self.mode != "auto":
            return self.mode
        return "online" if has_wandb_key() else "offline"


def has_wandb_key() -> bool:
    """Whether a key lies where `wandb login` puts it or the environment names one; asks nobody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
