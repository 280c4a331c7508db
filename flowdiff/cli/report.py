"""`flowdiff report FOLDER…`: a table, plots and one HTML page of any set of runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write report.csv, report.md, report.html and plots/."""
    parser = argparse.ArgumentParser(
        prog="flowdiff report",
        description="Collect runs into a table (mean ± sd over seeds), plots and one HTML page.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="a run folder, or a folder that contains some; files beside them, as in multirun/*, are left out",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where to write (default: the folder `report` in the first FOLDER)"
    )
    given = parser.parse_args(argv)

    from flowdiff.report import read

    folders = [name for name in given.folders if not Path(name).is_file()] or given.folders
    report = read(folders)
    out = Path(given.out) if given.out else Path(folders[0]) / "report"
    written = [*report.write_tables(out), *report.write_page(out)]  # first: a pipe such as `| head` may close
    report.show()
    plots = sum(path.suffix == ".png" for path in written)
    names = ", ".join(path.name for path in written if path.suffix != ".png")
    print(f"Wrote {names} and {plots} plots to {out}")
    return 0
