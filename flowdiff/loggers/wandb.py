"""Weights & Biases, online or offline."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.loggers.base import RunInfo, StartedRun, Tracker
from flowdiff.registry import register
from flowdiff.runs.processes import is_first_rank

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from wandb import Run

STEP = "trainer/global_step"  # WandbLogger's name of the step axis
NOT_IN_PROJECT = frozenset("/\\#?%:")
Mode = Literal["online", "offline", "disabled"]
# What WANDB_MODE may be; dryrun and run are W&B's older names.
MODES: dict[str, Mode] = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "dryrun": "offline",
    "run": "online",
}


@register("logger", "wandb")
class WandB(Tracker):
    """Weights & Biases: group = sweep, name = readable overrides, id = run id, config flattened by W&B.

    A resumed run continues the same W&B run. Fréchet distances and the validation loss keep their minimum beside the
    final value. `flowdiff sync` uploads offline runs later.

    Args:
        project: W&B project, up to 128 characters without / \\ # ? % and :.
        entity: user or team that owns the project; None: the key's default.
        mode: online, offline or disabled; auto: WANDB_MODE, else online if an API key is found, else offline. Never
            asks.
        checkpoint: whether last.ckpt becomes an artifact of the run.

    Raises:
        ConfigurationError: online without an API key, or another WANDB_MODE or project than W&B allows.
        RunError: W&B refuses to open the run.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        mode: Literal["auto", "online", "offline", "disabled"],
        checkpoint: bool,
    ):
        if not 1 <= len(project) <= 128 or NOT_IN_PROJECT.intersection(project):
            raise ConfigurationError(
                f"logger.project={project} is not allowed: W&B takes 1 to 128 characters, none of / \\ # ? % and : "
                "(WANDB_PROJECT is the default)."
            )
        asked = "logger.mode=online" if mode == "online" else f"WANDB_MODE={os.environ.get('WANDB_MODE')}"
        if (mode if mode != "auto" else _mode_of_environment()) == "online" and not has_wandb_key():
            raise ConfigurationError(
                f"{asked} needs a W&B API key and there is none: set WANDB_API_KEY or run `wandb login`, or set "
                f"{asked.partition('=')[0]}=offline."
            )
        self.project = project
        self.entity = entity
        self.mode = mode
        self.uploads_checkpoint = checkpoint
        self._run: Run | None = None
        self._least: dict[str, float] = {}

    def start(self, folder: Path, run: StartedRun) -> list[Logger]:
        if not is_first_rank():
            return []
        from lightning.pytorch.loggers import WandbLogger

        self._run = self._open(folder, run, run["config"], resumed=run["resumed"])
        # WandbLogger defines its step axis only for a run that it creates itself.
        self._run.define_metric("*", step_metric=STEP, step_sync=True)
        self._run.define_metric("val_loss", step_metric=STEP, summary="min")
        return [WandbLogger(experiment=self._run)]

    def evaluations(self, folder: Path, run: RunInfo, rows: list[dict[str, Any]]) -> None:
        self._run = self._open(folder, run, None, resumed=True)
        axis = "evaluation/number"  # the training steps are not the axis of these
        for key in dict.fromkeys(key for row in rows for key in row if key != "number"):
            self._run.define_metric(f"evaluation/{key}", step_metric=axis, step_sync=False)
        for row in rows:
            self._run.log({f"evaluation/{key}": value for key, value in row.items() if value != ""})
        self.finish()

    def _open(self, folder: Path, run: RunInfo, config: dict[str, Any] | None, *, resumed: bool) -> Run:
        import wandb

        try:
            # create_new creates no global run, so that several runs of one process cannot leak into each other.
            return wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self._resolved_mode(),
                dir=os.environ.get("WANDB_DIR") or str(folder),
                id=run["run_id"],
                name=run["name"],
                group=run["sweep"],
                tags=run["tags"],
                config=config,
                # Offline it takes effect later: `wandb sync` then appends instead of replacing. A run that starts at
                # step 0 replaces what an earlier attempt left.
                resume="allow" if resumed else None,
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, ValueError, TypeError) as error:  # its settings raise errors of pydantic
            reason = " ".join(str(error).split()).rstrip(".")
            raise RunError(f"W&B cannot open the run ({reason}): fix this, or set logger.mode=offline.") from error

    def minimise(self, values: Mapping[str, float]) -> None:
        if self._run is not None:
            for name, value in values.items():
                if name not in self._least:  # by full name: when two patterns match, W&B picks either
                    self._run.define_metric(name, step_metric=STEP, summary="min")
                self._least[name] = min(value, self._least.get(name, value))

    def pictures(self, paths: dict[str, Path], step: int) -> None:
        if self._run is not None:
            import wandb

            images = {key: wandb.Image(str(path)) for key, path in paths.items()}
            self._run.log({**images, STEP: step})

    def summary(self, metrics: dict[str, Any]) -> None:
        if self._run is not None:
            # The final value replaces the curve's minimum, which moves to `<key>_min`.
            final = {key: metrics[key] for key in self._least if key in metrics}
            minima = {
                f"{key}_min": self._least[key] if value is None else min(self._least[key], value)
                for key, value in final.items()
            }
            self._run.summary.update({**metrics, **minima})

    def checkpoint(self, path: Path) -> None:
        if self._run is not None and self.uploads_checkpoint:
            import wandb

            artifact = wandb.Artifact(f"checkpoint-{self._run.id}", type="model")
            artifact.add_file(str(path.resolve()), policy="immutable")  # uploads the file itself, not a copy
            self._run.log_artifact(artifact)

    def preempting(self) -> None:
        if self._run is not None:
            self._run.mark_preempting()

    def finish(self, exit_code: int = 0) -> None:
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None

    def _resolved_mode(self) -> Mode:
        if self.mode != "auto":
            return self.mode
        return _mode_of_environment() or ("online" if has_wandb_key() else "offline")


def _mode_of_environment() -> Mode | None:
    """WANDB_MODE, by which W&B's users switch it; None if it is not set."""
    given = os.environ.get("WANDB_MODE") or None
    mode = MODES.get(given.lower()) if given else None
    if given and mode is None:
        raise ConfigurationError(
            f"WANDB_MODE={given} is not allowed: set it to online, offline or disabled, or unset it (logger.mode goes "
            "before it)."
        )
    return mode


def has_wandb_key() -> bool:
    """Whether WANDB_API_KEY is set or `wandb login` has stored a key for the server; never asks."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
