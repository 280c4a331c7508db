"""Runs as W&B has written them offline, read back by W&B's own message types."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowdiff.loggers.offline import records


@dataclass
class OfflineRun:
    """What one file says of its run; resume: whether it is to be appended to what W&B has."""

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
    """Those of a run folder, in the order of their times."""
    import wandb

    wandb.teardown()  # now the files are closed
    return [_read(file.read_bytes()) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _read(data: bytes) -> OfflineRun:
    from wandb.proto.wandb_internal_pb2 import Record

    run = OfflineRun()
    for _, payload in records(data):
        record = Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id, run.name, run.group = record.run.run_id, record.run.display_name, record.run.run_group
            run.tags = list(record.run.tags)
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update if item.key}
            run.resume = record.run.resume
        elif kind == "history":
            run.curves |= {item.key or item.nested_key[0] for item in record.history.item}
        elif kind == "summary":
            for update in record.summary.update:
                run.summary[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        elif kind == "metric" and record.metric.summary.min:
            run.minimised.add(record.metric.name or record.metric.glob_name)
        elif kind == "artifact":
            (content,) = record.artifact.manifest.contents
            run.artifacts[record.artifact.name] = content.local_path
        elif kind == "preempting":
            run.preempting = True
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run
