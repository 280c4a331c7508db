"""`flowdiff push FOLDER USER/NAME`: an exported folder to the Hugging Face hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Upload the folder."""
    parser = argparse.ArgumentParser(
        prog="flowdiff push", description="Upload an exported folder to the Hugging Face hub."
    )
    parser.add_argument("folder", metavar="FOLDER", help="a folder that `flowdiff export` wrote")
    parser.add_argument("name", metavar="USER/NAME", help="the repository, which is made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    given = parser.parse_args(argv)

    from flowdiff.export.hub import push

    push(given.folder, given.name, given.private)
    print(f"Uploaded {given.folder}; load it with flowdiff.load('hub:{given.name}')")
    return 0
