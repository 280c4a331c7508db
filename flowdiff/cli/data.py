"""`flowdiff data pack FOLDER ARCHIVE`: a folder of pictures as one zip."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Pack the folder."""
    parser = argparse.ArgumentParser(prog="flowdiff data", description="Data sets on disk.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{pack}")
    packing = commands.add_parser("pack", help="write a folder of pictures into one zip, which dataset=image_zip reads")
    packing.add_argument("folder", type=Path, metavar="FOLDER", help="a subfolder for each class, or pictures alone")
    packing.add_argument("archive", type=Path, metavar="ARCHIVE", help="the new zip")
    packing.add_argument("--size", type=int, required=True, metavar="N", help="pixels along a side")
    packing.add_argument("--grey", action="store_true", help="one channel instead of three")
    packing.add_argument("--no-labels", action="store_true", help="leave the classes out")
    packing.add_argument("--background", default="white", metavar="COLOUR", help="behind transparent pixels")
    given = parser.parse_args(argv)

    from flowdiff.data.pack import pack
    from flowdiff.progress import counting

    with counting("packing") as progress:
        packed = pack(
            given.folder.expanduser(),
            given.archive.expanduser(),
            image_size=given.size,
            channels=1 if given.grey else 3,
            labels=not given.no_labels,
            background=given.background,
            progress=progress,
        )
    settings = f"dataset=image_zip dataset.path={given.archive} dataset.image_size={given.size}"
    settings += " dataset.channels=1" if given.grey else ""
    settings += " conditioner=none" if packed.classes is None else ""
    about = "without classes" if packed.classes is None else f"of {packed.classes} classes"
    captions = ", with captions" if packed.captioned else ""
    print(f"Wrote {packed.pictures:,} pictures {about}{captions}; train with {settings}")
    return 0
