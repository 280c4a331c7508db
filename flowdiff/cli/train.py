"""`python train.py <overrides>`: compose, check, train."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from flowdiff import config
from flowdiff.cli.sentences import hydra_command, run_in_sentences
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.files import MissingFolders
from flowdiff.runs.identity import label_of_folder
from flowdiff.runs.job import Job, checked_retry
from flowdiff.runs.machine_settings import HASHED_AS, MOVABLE, NOT_IDENTITY, NOT_IDENTITY_KEYS
from flowdiff.runs.ownership import owned
from flowdiff.runs.processes import is_first_rank, take_place
from flowdiff.runs.run_folder import RunFolder
from flowdiff.runs.signals import exiting_on_stop_signals

log = logging.getLogger(__name__)

CHANGEABLE = (*NOT_IDENTITY, "accelerator")  # groups that resume= may change


def main() -> None:
    """Entry point of train.py and `flowdiff train`."""

    def command() -> None:
        arguments = config.quoted(sys.argv[1:])
        moved: dict[str, Any] = {}
        config.load_plugins(arguments)
        resumed = config.setting(arguments, "resume")
        if resumed is not None:
            folder = RunFolder.open(resumed)  # an error before Hydra writes train.log into the folder
            if folder.exported() is not None:
                raise RunError(
                    f"resume={resumed} was exported, without the state of its training: resume the run itself, or "
                    f"train its model further by adapter=full adapter.run={resumed}."
                )
            arguments, moved = config.without(arguments, MOVABLE)
            if not folder.is_complete:
                config.check_run(folder, moved)
        hydra_command(partial(run, moved=moved), "config", arguments)

    run_in_sentences(command, "config")


class EmptyFolderRemoval(Callback):
    """Removes the folders that Hydra makes for a run, if the run is refused and leaves nothing in them."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.missing = MissingFolders(config.hydra.run.dir)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self.missing.remove_empty()


def run(cfg: DictConfig, moved: Mapping[str, Any]) -> float | None:
    """One training run, in the folder that Hydra made for it; returns the test loss, for sweepers that optimise.

    moved: settings of MOVABLE that are given again for a run that is resumed.
    """
    runtime = HydraConfig.get()
    overrides = list(runtime.overrides.task)
    path = Path(runtime.runtime.output_dir)
    config.check(cfg, overrides)
    settings = _resumed(cfg, overrides, moved) if cfg.resume else config.resolved(cfg)
    folder = RunFolder(cfg.resume or _relative(path))
    sweep = Path(runtime.sweep.dir).name if runtime.mode == RunMode.MULTIRUN else None
    original = label_of_folder(folder) if cfg.resume else None
    take_place(settings)
    job = Job(settings, folder.path, tuple(overrides), sweep, original)
    verdict = job.verdict(checked_retry(cfg.retry), cfg.force)
    if verdict == "complete":
        if moved and is_first_rank():
            with owned(folder.path):
                config.record_moved(folder, moved)
        return _already_complete(folder)
    if verdict == "failed":
        raise RunError(f"{folder.path} has failed before: {folder.failure()} (retry=failed runs it again)")
    job.prepare(cfg.force)
    return _train(job)


def _train(job: Job) -> float | None:
    from functools import partial

    from flowdiff.launch.search.pruning import pruning
    from flowdiff.runs import result_table
    from flowdiff.training.run import train

    if is_first_rank():
        _print_tree(job.config)
    with exiting_on_stop_signals():
        result = job.execute(partial(train, more_callbacks=pruning))
    if result:
        result_table.show(result, job.folder.path)
    return result.get("metrics", {}).get("test_loss")


def _already_complete(folder: RunFolder) -> float | None:
    from flowdiff.runs import result_table

    result = folder.result()
    log.info("%s is complete; force=true trains it from scratch.", folder.path)
    result_table.show(result, folder.path)
    return folder.test_loss()


def _resumed(cfg: DictConfig, overrides: list[str], moved: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the run to resume; only settings of the machine, of logging and of hardware may be changed."""
    folder = RunFolder.open(cfg.resume)
    only_shown = folder.is_complete and cfg.retry != "all"
    settings = folder.config() if only_shown else config.of_run(folder, moved)
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        group, _, leaf = key.partition(".")
        if group == "trainer" and leaf in NOT_IDENTITY_KEYS[group]:
            settings[group][leaf] = config.resolved(cfg)[group][leaf]
            continue
        if group not in CHANGEABLE:
            allowed = [key for key in CHANGEABLE if key not in ("hydra", HASHED_AS)]
            raise ConfigurationError(
                f"{override} cannot be changed with resume={cfg.resume}: a resumed run keeps its configuration; "
                f"allowed are {', '.join(dict.fromkeys([*allowed, *MOVABLE]))}."
            )
        if group in settings:
            settings[group] = config.resolved(cfg)[group]
    return settings


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_tree(settings: dict) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree("config", guide_style="dim")
    for key, value in settings.items():
        if isinstance(value, dict):
            branch = tree.add(f"[bold]{escape(key)}[/]" + (escape(f" = {value['name']}") if "name" in value else ""))
            for k, v in value.items():
                if k != "name":
                    branch.add(escape(f"{k}: {v}"))
        else:
            tree.add(f"[bold]{escape(key)}[/]: {escape(str(value))}")
    Console().print(tree)
