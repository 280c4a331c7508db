"""`python train.py <overrides>`: compose, check, train."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from flowdiff import config
from flowdiff.cli.sentences import hydra_command, run_in_sentences
from flowdiff.errors import ConfigurationError, FlowdiffError, RunError
from flowdiff.runs.identity import NOT_IDENTITY
from flowdiff.runs.job import Job, checked_retry, is_first_rank
from flowdiff.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

CHANGEABLE = (*NOT_IDENTITY, "accelerator")  # groups that resume= may change


def main() -> None:
    """Entry point of train.py and `flowdiff train`."""

    def command() -> None:
        config.load_plugins(sys.argv[1:])
        for argument in sys.argv[1:]:
            if argument.startswith("resume=") and argument != "resume=null":
                RunFolder.open(argument.partition("=")[2])  # an error before Hydra creates the folder
        hydra_command(run, "config")

    run_in_sentences(command, "config")


def run(cfg: DictConfig) -> float | None:
    """One training run, in the folder that Hydra made for it; returns the test loss, for sweepers that optimise."""
    runtime = HydraConfig.get()
    overrides = list(runtime.overrides.task)
    path = Path(runtime.runtime.output_dir)
    try:
        config.check(cfg)
        settings = _resumed(cfg, overrides) if cfg.resume else config.resolved(cfg)
        folder = RunFolder(cfg.resume or _relative(path))
        sweep = Path(runtime.sweep.dir).name if runtime.mode == RunMode.MULTIRUN else None
        job = Job(settings, folder.path, tuple(overrides), sweep)
        verdict = job.verdict(checked_retry(cfg.retry), cfg.force)
        if verdict == "complete":
            return _already_complete(folder)
        if verdict == "failed":
            raise RunError(f"{folder.path} has failed before: {folder.failure()} (retry=failed runs it again)")
        job.prepare(cfg.force)
        return _train(job)
    except FlowdiffError:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()  # a refused run leaves no folder
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # and no parent folder, unless other runs are in it
        raise


def _train(job: Job) -> float | None:
    from functools import partial

    from flowdiff.launch.search.pruning import pruning
    from flowdiff.runs import result_table
    from flowdiff.training.run import train

    if is_first_rank():
        _print_tree(job.config)
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


def _resumed(cfg: DictConfig, overrides: list[str]) -> dict:
    """The config of the run to resume; only settings of logging and hardware may be changed."""
    folder = RunFolder.open(cfg.resume)
    only_shown = folder.is_complete and cfg.retry != "all"
    settings = folder.config() if only_shown else config.of_run(folder)
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.split(".")[0] not in CHANGEABLE:
            raise ConfigurationError(
                f"{override} cannot be changed with resume={cfg.resume}: a resumed run keeps its configuration; "
                f"allowed are {', '.join(k for k in CHANGEABLE if k != 'hydra')}."
            )
        group = key.split(".")[0]
        if group in settings:
            settings[group] = config.resolved(cfg)[group]
    return settings


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_tree(settings: dict) -> None:
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree("config", guide_style="dim")
    for key, value in settings.items():
        if isinstance(value, dict):
            branch = tree.add(f"[bold]{key}[/]" + (f" = {value['name']}" if "name" in value else ""))
            for k, v in value.items():
                if k != "name":
                    branch.add(f"{k}: {v}")
        else:
            tree.add(f"[bold]{key}[/]: {value}")
    Console().print(tree)
