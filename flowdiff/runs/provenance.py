"""What made a run: the versions of the packages and the commit of the code."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

VERSIONED = ("torch", "lightning", "hydra-core", "wandb", "diffusers", "torchmetrics", "numpy")


def versions() -> dict[str, str]:
    """The installed versions of what decides a run's numbers."""
    return {name: metadata.version(name) for name in VERSIONED}


def git_commit() -> str | None:
    """The commit the code stands at, with "+dirty" when files differ from it; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
