"""The code that made a run: versions of the packages and the git commit."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowdiff.version import __version__

DEPENDENCIES = ("torch", "lightning", "hydra-core", "wandb", "diffusers", "torchmetrics", "numpy")


def versions() -> dict[str, str]:
    """The versions of flowdiff and of the packages that determine a run's numbers."""
    from importlib import metadata  # slow to import, and composing a config does not need it

    return {"flowdiff": __version__} | {name: metadata.version(name) for name in DEPENDENCIES}


def git_commit() -> str | None:
    """The commit of this code, with "+dirty" when the checkout has changes; None if git does not track this file.

    An installed wheel may lie inside some other repository, whose commit would say nothing about this code.
    """
    file = Path(__file__)

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=file.parent, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def made_by(result: Mapping[str, Any]) -> str:
    """The flowdiff that made a run, by its result.json, for error messages: "flowdiff 0.2.0 (commit 1a2b3c4d5e6f)"."""
    version = (result.get("versions") or {}).get("flowdiff")
    name = f"flowdiff {version}" if version else "the version of flowdiff that made it"
    commit = str(result.get("git_commit") or "").removesuffix("+dirty")
    return f"{name} (commit {commit[:12]})" if commit else name
