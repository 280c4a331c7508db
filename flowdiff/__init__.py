"""flowdiff: diffusion models whose score is the exact gradient of a normalizing flow's log-density.

The functions of `flowdiff.api` are imported at their first use, so that `import flowdiff` stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowdiff.version import __version__

if TYPE_CHECKING:
    from flowdiff.api import between, build, change, load, restore, sample

__all__ = ["__version__", "between", "build", "change", "load", "restore", "sample"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from flowdiff import api

        return getattr(api, name)
    raise AttributeError(f"module 'flowdiff' has no attribute {name!r}")
