"""The display of a sweep: lines where there is no terminal, a table where there is one."""

import io
import time

import pytest
from rich.console import Console

from flowdiff.launch.board import Board, Row, duration
from flowdiff.runs.run_folder import RunFolder


def make_board(tmp_path, n=3, **options):
    """A board, its rows, and a function that returns its output."""
    rows = [Row(f"seed={i}", RunFolder(tmp_path / str(i)), max_steps=100) for i in range(n)]
    board = Board(rows, Console(file=io.StringIO(), width=100, **options))

    def shown():
        console = Console(file=io.StringIO(), width=100, **{k: v for k, v in options.items() if k == "height"})
        console.print(board.table())
        return console.file.getvalue()

    return board, rows, shown


def test_a_line_per_event_without_a_terminal(tmp_path):
    board, rows, _ = make_board(tmp_path)
    with board:
        board.change(rows[0], "running")
        board.change(rows[0], "done")
        board.change(rows[1], "failed", "it broke [at once].")
    assert board.console.file.getvalue().splitlines() == [
        "    0/3  running  seed=0",
        "    1/3  done     seed=0",
        "    2/3  failed   seed=1  it broke [at once].",
    ]


def test_the_table_shows_progress_loss_and_time_left(tmp_path):
    board, rows, shown = make_board(tmp_path, force_terminal=True, height=40)
    rows[0].folder.write_config({})
    board.change(rows[0], "running")
    rows[0].started = time.monotonic() - 30
    rows[0].folder.metrics.write_text("step,train_loss\n24,0.5\n49,0.25\n")
    rows[0].update()
    assert rows[0].remaining() == pytest.approx(30, rel=0.1)
    board.change(rows[1], "failed", "it broke [at once].")
    words = ("50/100", "0.2500", "0:30", "it broke [at once].", "seed=0", "seed=1", "seed=2", "queued")
    assert all(word in shown() for word in ("1 running, 1 failed, 1 queued", *words))


def test_a_long_table_fits_the_terminal(tmp_path):
    board, rows, shown = make_board(tmp_path, 200, force_terminal=True, height=20)
    board.change(rows[150], "running")
    assert len(shown().splitlines()) <= 20
    assert "seed=150" in shown()
    assert "… and 187 more" in shown()


def test_a_resumed_run_is_not_mistaken_for_a_fast_one(tmp_path):
    board, (row,), _ = make_board(tmp_path, 1)
    row.folder.write_config({})
    row.folder.metrics.write_text("step,train_loss\n79,0.5\n")
    board.change(row, "running")
    assert (row.step, row.remaining()) == (80, None)


def test_duration():
    assert (duration(5), duration(125), duration(3725)) == ("0:05", "2:05", "1:02:05")
