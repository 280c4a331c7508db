"""`flowdiff export RUN FOLDER`: the model of a run with all it needs, in a folder that can be moved and uploaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        prog="flowdiff export",
        description="Write the model of a run with all it needs into a folder: safetensors, config and model card.",
    )
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("folder", metavar="FOLDER", help="the new folder")
    parser.add_argument("--license", default="unknown", metavar="ID", help="licence in the model card, e.g. mit")
    given = parser.parse_args(argv)

    from flowdiff.export.folder import export

    out = export(given.run, given.folder, given.license)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"Wrote {size / 2**20:.1f} MiB to {out}; load it with flowdiff.load({str(out)!r})")
    return 0
