"""The trained weights of a run folder: of its checkpoint, or of the safetensors of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowdiff.digests import weight_hash
from flowdiff.errors import RunError
from flowdiff.runs.run_folder import RunFolder

PREFIX = "denoiser."  # of the model in the state dict of the engine


@dataclass(frozen=True)
class Weights:
    """Trained weights.

    Args:
        state: state dict of the model.
        levels: file that keeps what schedule=optimal measures of them.
        hash: of the weights of the checkpoint.
        adapter_base: id and hash of the run that an adapter changes; None without an adapter.
    """

    state: Mapping[str, Any]
    levels: Path
    hash: str
    adapter_base: Mapping[str, str] | None = None


def trained_weights(folder: RunFolder) -> Weights:
    """The weights in a run folder; RunError if there are none, any error of reading if they are damaged."""
    exported = folder.exported()
    if exported is not None:
        from safetensors.torch import load_file

        state = dict(exported.words)
        for name, prefix in exported.weights.items():
            if not (folder.path / name).is_file():
                raise RunError(f"{folder.path} was exported with {name}, which is missing: export the run again.")
            state |= {f"{prefix}{key}": value for key, value in load_file(folder.path / name).items()}
        return Weights(state, folder.path / exported.levels, exported.weights_hash)
    checkpoint = checkpoint_of(folder)
    of_engine = checkpoint["state_dict"]
    return Weights(
        {key.removeprefix(PREFIX): value for key, value in of_engine.items() if key.startswith(PREFIX)},
        folder.path / f"levels_of_step_{checkpoint['global_step']}.json",
        weight_hash({key: value for key, value in of_engine.items() if isinstance(value, torch.Tensor)}),
        checkpoint.get("adapter_base"),
    )


def checkpoint_of(folder: RunFolder) -> dict[str, Any]:
    """The checkpoint of a run folder, on the CPU; RunError if there is none."""
    if not folder.checkpoint.is_file():
        raise RunError(f"run={folder.path} has no checkpoint {folder.checkpoint.name} yet: let it train first.")
    checkpoint: dict[str, Any] = torch.load(folder.checkpoint, map_location="cpu", weights_only=True)
    return checkpoint
