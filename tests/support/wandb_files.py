"""Runs that W&B has written offline, read back with W&B's own reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowdiff.loggers.offline import records


@dataclass
class OfflineRun:
    """The contents of one file; resume: whether its upload is appended to what W&B holds of the run."""

    run_id: str = ""
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    curves: set[str] = field(default_factory=set)
    minimised: set[str] = field(default_factory=set)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)  # name to the path of the file
    preempting: bool = False
    exit_code: int | None = None


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The offline runs of a run folder, in the order of their times."""
    import wandb

    wandb.teardown()  # closes the files
    return [_read(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _read(file: Path) -> OfflineRun:
    run = OfflineRun()  # the reader leaves out empty fields
    for record in records(file):
        content = record[record["type"]]
        match record["type"]:
            case "run":
                run.run_id, run.name = content["run_id"], content["display_name"]
                run.group, run.tags = content.get("run_group", ""), content.get("tags", [])
                run.resume = content.get("resume", False)
                run.config |= content["config"]["update"]
            case "history":
                run.curves |= {key.removesuffix("._type") for key in content["item"]}  # pictures have a type
            case "summary":
                run.summary |= content.get("update", {})
            case "metric" if content.get("summary", {}).get("min"):
                run.minimised.add(content.get("name") or content["glob_name"])
            case "artifact":
                (stored,) = content["manifest"]["contents"]
                run.artifacts[content["name"]] = stored["local_path"]
            case "preempting":
                run.preempting = True
            case "exit":
                run.exit_code = content.get("exit_code", 0)
    return run
