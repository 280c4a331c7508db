"""Run folders to an answer: a table, plots and one page.

`report(folders, out)` reads `config.yaml`, `result.json`, `metrics.csv`, `evaluations.csv` and `samples.png` of
every run it finds, and nothing else; it needs no torch and no network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowdiff.errors import RunError

if TYPE_CHECKING:
    from flowdiff.report.table import Table
    from flowdiff.runs.collect import Run

__all__ = ["Report", "read", "report"]


@dataclass(frozen=True)
class Report:
    """What was found in the folders: the runs, one row per setting, and one row per way of sampling."""

    folders: list[str]
    runs: list[Run]
    table: Table
    sampling: Table

    def show(self, console: Any = None) -> None:
        """Print the table, what must be said beside it, and the runs that failed or are unfinished."""
        from rich.console import Console

        from flowdiff.report.table import problems, sentences, to_rich

        if console is None:
            console = Console() if Console().is_terminal else Console(width=PIPED)
        if self.table.rows:
            console.print(to_rich(self.table, "Settings, mean ± sd over seeds", console.width))
        if self.sampling.rows:
            console.print(to_rich(self.sampling, "Sampling, mean ± sd over seeds", console.width, most=40))
        for sentence in sentences(self.runs, self.table):
            console.print(sentence, markup=False, highlight=False)
        for run in problems(self.runs)[:LISTED]:
            console.print(f"  {run.state}: {run.label}: {run.reason}", markup=False, highlight=False, soft_wrap=True)
        if (more := len(problems(self.runs)) - LISTED) > 0:
            console.print(f"  … and {more} more, listed in report.md.")

    def write_tables(self, out: str | Path) -> list[Path]:
        """Write report.csv, report.md and, where runs were sampled again, sampling.csv; returns the paths."""
        from flowdiff.report.table import problems_markdown, sentences, to_csv, to_markdown, unsaid

        out = _folder(out)
        parts = [
            f"# {', '.join(self.folders)}\n",
            "\n".join(f"{s}  " for s in sentences(self.runs, self.table)) + "\n",
        ]
        if self.table.rows:
            parts.append(f"Mean ± sd over seeds, best in bold.\n\n{to_markdown(self.table)}")
        written = [_write(out / "report.csv", lambda path: to_csv(self.table, path))]
        if self.sampling.rows:
            about = "".join(f"{sentence}  \n" for sentence in unsaid(self.sampling))
            parts.append(f"## Sampling\n\n{about}\n{to_markdown(self.sampling)}")
            written.append(_write(out / "sampling.csv", lambda path: to_csv(self.sampling, path)))
        if listed := problems_markdown(self.runs):
            parts.append(f"## Not complete\n\n{listed}")
        written.append(_write(out / "report.md", lambda path: path.write_text("\n".join(parts), encoding="utf-8")))
        return written

    def write_page(self, out: str | Path) -> list[Path]:
        """Write report.html and the plots it shows (plots/*.png); returns their paths."""
        from flowdiff.report.page import page
        from flowdiff.report.plots import plots, png

        out = _folder(out)
        pictures = [(p.slug, p.caption, png(p.figure)) for p in plots(self.runs, self.table, self.sampling)]
        folder = _folder(out / "plots") if pictures else out
        written = [
            _write(folder / f"{slug}.png", lambda path, d=data: path.write_bytes(d)) for slug, _, data in pictures
        ]
        html = page(self, pictures, out)
        return [*written, _write(out / "report.html", lambda path: path.write_text(html, encoding="utf-8"))]


LISTED = 30  # incomplete runs named in the terminal
PIPED = 200  # columns of a table that goes to a file or a pipe


def read(folders: Iterable[str | Path]) -> Report:
    """The report of every run in the folders, at any depth. Raises RunError where there is none."""
    from flowdiff.report.table import run_table, sampling_table
    from flowdiff.runs.collect import collect

    folders = [str(folder) for folder in folders]
    runs = collect(folders)
    return Report(folders, runs, run_table(runs), sampling_table(runs))


def report(folders: Iterable[str | Path], out: str | Path) -> Report:
    """Read the runs in the folders and write report.csv, report.md, report.html and plots/ into `out`.

    Raises RunError where a folder holds no run or `out` cannot be written.
    """
    result = read(folders)
    result.write_tables(out)
    result.write_page(out)
    return result


def _folder(path: str | Path) -> Path:
    path = Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be made: {error.strerror}; give another folder with --out.") from None
    return path


def _write(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write beside the file, then rename: an earlier report stays whole if the disk is full."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror}; give another folder with --out.") from None
    return path
