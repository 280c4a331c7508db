"""The report of a set of runs: tables and one HTML page.

`report(folders, out)` reads `config.yaml`, `result.json`, `metrics.csv`, `evaluations.csv`, `health.json` and
`samples.png` of every run that it finds, and nothing else. It needs no torch and no network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowdiff.errors import RunError
from flowdiff.report import text
from flowdiff.report.page import page
from flowdiff.report.plots import plots
from flowdiff.report.style import png
from flowdiff.report.table import Table, run_table, sampling_table
from flowdiff.runs.collect import Run, collect
from flowdiff.runs.files import whole
from flowdiff.runs.records import printable

if TYPE_CHECKING:
    from rich.console import Console

MAX_LISTED = 30  # incomplete runs named in the terminal
PIPE_WIDTH = 200  # columns of a table that goes to a file or a pipe


@dataclass(frozen=True)
class Report:
    """The runs of some folders, and what the tables say of them.

    Attributes:
        folders: the folders as given.
        runs: every run in them.
        table: one row per setting.
        sampling: one row per setting and way of sampling, from evaluations.csv.
    """

    folders: list[str]
    runs: list[Run]
    table: Table
    sampling: Table

    def show(self, console: Console | None = None) -> None:
        """Print the tables, the notes on them, and the runs that failed or are unfinished."""
        from rich.console import Console

        if console is None:
            console = Console() if Console().is_terminal else Console(width=PIPE_WIDTH)
        if self.table.rows:
            console.print(text.to_rich(self.table, "Settings, mean ± sd over seeds", console.width))
        if self.sampling.rows:
            console.print(text.to_rich(self.sampling, "Sampling, mean ± sd over seeds", console.width, most=40))
        for note in text.report_notes(self.runs, self.table):
            console.print(note, markup=False, highlight=False)
        incomplete = text.incomplete_runs(self.runs)
        for run in incomplete[:MAX_LISTED]:
            console.print(f"  {run.state}: {run.label}: {run.reason}", markup=False, highlight=False, soft_wrap=True)
        if (more := len(incomplete) - MAX_LISTED) > 0:
            console.print(f"  … and {more} more, listed in report.md.")

    def write_tables(self, out: str | Path) -> list[Path]:
        """Write report.csv, report.md and, if runs were sampled again, sampling.csv; returns the paths."""
        out = _make_folder(out)
        parts = [f"# {text.escaped(', '.join(self.folders))}\n", _lines(text.report_notes(self.runs, self.table))]
        written = [_write(out / "report.csv", text.to_csv(self.table))]
        if self.table.rows:
            parts.append(f"Mean ± sd over seeds, best in bold.\n\n{text.to_markdown(self.table)}")
        if self.sampling.rows:
            parts.append(
                f"## Sampling\n\n{_lines(text.column_notes(self.sampling))}\n{text.to_markdown(self.sampling)}"
            )
            written.append(_write(out / "sampling.csv", text.to_csv(self.sampling)))
        if listed := text.incomplete_runs_markdown(self.runs):
            parts.append(f"## Incomplete runs\n\n{listed}")
        return [*written, _write(out / "report.md", "\n".join(parts))]

    def write_page(self, out: str | Path) -> list[Path]:
        """Write report.html and the plots it shows (plots/*.png); returns their paths."""
        out = _make_folder(out)
        pictures = [(plot.slug, plot.caption, png(plot.figure)) for plot in plots(self.runs, self.table, self.sampling)]
        folder = _make_folder(out / "plots") if pictures else out
        written = [_write(folder / f"{slug}.png", data) for slug, _, data in pictures]
        html = page(self.folders, self.runs, self.table, self.sampling, pictures, out)
        return [*written, _write(out / "report.html", html)]


def read(folders: Iterable[str | Path]) -> Report:
    """Read every run in the folders, at any depth.

    Raises:
        RunError: a folder holds no run or cannot be read.
    """
    given = [str(folder) for folder in folders]
    runs = collect(given)
    return Report([printable(folder) for folder in given], runs, run_table(runs), sampling_table(runs))


def report(folders: Iterable[str | Path], out: str | Path) -> Report:
    """Read the runs in the folders and write report.csv, report.md, report.html and plots/ into `out`.

    Raises:
        RunError: a folder holds no run, or `out` cannot be written.
    """
    result = read(folders)
    result.write_tables(out)
    result.write_page(out)
    return result


def _make_folder(path: str | Path) -> Path:
    path = Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be created: {error.strerror}; give another folder with --out.") from None
    return path


def _write(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all: an earlier report stays as it is if the disk is full."""
    with whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _lines(notes: Iterable[str]) -> str:
    return "".join(f"{text.escaped(note)}  \n" for note in notes)
