"""What a sweep says: lines where there is no terminal, a table where there is one."""

import io
import time

import pytest
from rich.console import Console

from flowdiff.launch.board import Board, Row, duration
from flowdiff.runs.run_folder import RunFolder


def rows(tmp_path, n=3):
    return [Row(f"seed={i}", RunFolder(tmp_path / str(i)), max_steps=100) for i in range(n)]


def console(**options):
    return Console(file=io.StringIO(), width=100, **options)


def test_a_line_per_event_without_a_terminal(tmp_path):
    given = rows(tmp_path)
    with Board(given, console()) as board:
        board.change(given[0], "running")
        board.change(given[0], "done")
        board.change(given[1], "failed", "it broke [at once].")
    assert board.console.file.getvalue().splitlines() == [
        "    0/3  running  seed=0",
        "    1/3  done     seed=0",
        "    2/3  failed   seed=1  it broke [at once].",
    ]


def test_the_table_shows_progress_loss_and_time_left(tmp_path):
    given = rows(tmp_path)
    board = Board(given, console(force_terminal=True, height=40))
    given[0].folder.write_config({})
    board.change(given[0], "running")
    given[0].started = time.monotonic() - 30
    given[0].folder.metrics.write_text("step,train_loss\n24,0.5\n49,0.25\n")
    given[0].look()
    assert given[0].remaining() == pytest.approx(30, rel=0.1)
    board.change(given[1], "failed", "it broke [at once].")
    shown = console(height=40)
    shown.print(board.table())
    text = shown.file.getvalue()
    assert "1 running, 1 failed, 1 queued" in text
    for word in ("seed=0", "50/100", "0.2500", "0:30", "seed=1", "it broke [at once].", "seed=2", "queued"):
        assert word in text


def test_a_long_table_fits_the_terminal(tmp_path):
    given = rows(tmp_path, 200)
    board = Board(given, console(force_terminal=True, height=20))
    board.change(given[150], "running")
    shown = console(height=20)
    shown.print(board.table())
    text = shown.file.getvalue()
    assert len(text.splitlines()) <= 20
    assert "seed=150" in text
    assert "… and 187 more" in text


def test_a_resumed_run_is_not_taken_for_a_fast_one(tmp_path):
    row = rows(tmp_path, 1)[0]
    row.folder.write_config({})
    row.folder.metrics.write_text("step,train_loss\n79,0.5\n")
    board = Board([row], console())
    board.change(row, "running")
    assert (row.step, row.remaining()) == (80, None)


def test_duration():
    assert (duration(5), duration(125), duration(3725)) == ("0:05", "2:05", "1:02:05")
