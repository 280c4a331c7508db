"""Runs that W&B has written offline, read back with W&B's own reader."""

from pathlib import Path
from types import SimpleNamespace

from flowdiff.loggers.offline import records


def offline_runs(folder: Path) -> list[SimpleNamespace]:
    """The offline runs of a run folder, in the order of their times."""
    import wandb

    wandb.teardown()  # closes the files
    return [_read(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _read(file: Path) -> SimpleNamespace:
    """resume: whether the upload is appended to what W&B holds of the run; artifacts: name to the path of the file."""
    run = SimpleNamespace(run_id="", name="", group="", tags=[], resume=False, preempting=False, exit_code=None)
    vars(run).update(config={}, curves=set(), minimised=set(), summary={}, artifacts={})
    # The reader leaves out empty fields.
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
