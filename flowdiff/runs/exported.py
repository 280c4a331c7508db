"""An exported folder: a run without checkpoints, whose weights are safetensors and whose other parts lie inside it.

`export.json` says where everything is, so that the folder can be moved, and uploaded, as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from flowdiff.errors import RunError
from flowdiff.runs import records
from flowdiff.runs.files import write_whole
from flowdiff.runs.machine_settings import set_value

EXPORT = "export.json"
FORMAT = 1  # of export.json: increase it when an older flowdiff could no longer read it


@dataclass(frozen=True)
class Exported:
    """What export.json says.

    Args:
        format: of the file.
        run_id: the run that was exported.
        weights_hash: hash of the weights of its checkpoint, by which adapters name their base.
        levels: name of the file that keeps what schedule=optimal measures of these weights.
        weights: {file of safetensors: what stands in the model before the names of its tensors}.
        words: what the conditioner keeps besides tensors, {name in the state dict: JSON values}.
        parts: {dotted key of the config: the path of its value in the folder, or a list of paths}.
        plugins: Python files of the run, in the folder; they run only if they are given again.
    """

    format: int
    run_id: str
    weights_hash: str
    levels: str
    weights: Mapping[str, str]
    words: Mapping[str, Any]
    parts: Mapping[str, str | list[str]]
    plugins: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write export.json into a folder."""
        write_whole(folder / EXPORT, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    def located(self, config: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The config with the parts at their absolute paths; it is changed in place."""
        for key, value in self.parts.items():
            places = [str((folder / path).resolve()) for path in ([value] if isinstance(value, str) else value)]
            set_value(config, key, places[0] if isinstance(value, str) else places)
        return config


def exported(folder: Path) -> Exported | None:
    """What the export.json of a folder says; None for a run folder, which has none.

    Raises:
        RunError: it cannot be read, is of a later version, or names a file outside of the folder.
    """
    try:
        found = records.json_object(folder / EXPORT)
    except FileNotFoundError:
        return None
    except records.Unreadable as error:
        raise RunError(f"{folder / EXPORT} cannot be read ({error}): export the run again.") from error
    if found.get("format") != FORMAT:
        raise RunError(
            f"{folder} was exported in format {found.get('format')}, and this version of flowdiff reads format "
            f"{FORMAT}: update flowdiff, or export the run again."
        )
    try:
        found["plugins"] = tuple(found["plugins"])
        content = Exported(**{field.name: found[field.name] for field in fields(Exported)})
        paths = [content.levels, *content.weights, *content.plugins]
        for places in content.parts.values():
            paths += [places] if isinstance(places, str) else places
        outside = [path for path in paths if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts]
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder / EXPORT} lacks what an export has ({error}): export the run again.") from error
    if outside:
        raise RunError(f"{folder / EXPORT} names {outside[0]}, which is outside of the folder: export the run again.")
    return content
