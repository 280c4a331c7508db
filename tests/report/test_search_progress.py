import io

import pytest
from rich.console import Console

from flowdiff.report.search_progress import TrialRow, picture, table
from flowdiff.report.style import png

ROWS = [
    TrialRow(0, "complete", "", {"optimizer.lr": "0.01", "flow.n_flows": "3"}, 0.5, {10: 0.8, 20: 0.5}, False),
    TrialRow(1, "complete", "", {"optimizer.lr": "0.001", "flow.n_flows": "5"}, 0.25, {10: 0.4, 20: 0.25}, True),
    TrialRow(2, "pruned", "at step 10", {"optimizer.lr": "0.1", "flow.n_flows": "1"}, None, {10: 0.9}, False),
    TrialRow(3, "failed", "the data is not there", {"optimizer.lr": "0.2", "flow.n_flows": "2"}, None, {}, False),
    TrialRow(4, "complete", "", {"optimizer.lr": "0.02", "flow.n_flows": "2"}, 0.75, {}, False),
]


def test_the_table_marks_the_best_trial_and_says_why_others_ended():
    console = Console(file=io.StringIO(), width=100)
    console.print(table(ROWS, "val_loss"))
    printed = console.file.getvalue()
    (best,) = [line for line in printed.splitlines() if "best" in line]
    assert [cell.strip() for cell in best.split("│")] == ["", "1", "0.001", "5", "0.25", "best", ""]
    assert "pruned at step 10" in printed
    assert "failed the data is not there" in printed


@pytest.mark.parametrize(("direction", "best"), [("minimize", [0.5, 0.25, 0.25]), ("maximize", [0.5, 0.5, 0.75])])
def test_the_picture_shows_values_and_the_best_so_far(direction, best):
    figure = picture(ROWS, "val_loss", direction, {})
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["complete"].get_ydata()) == [0.5, 0.25, 0.75]
    assert list(lines["best so far"].get_ydata()) == best
    assert list(lines["pruned (last value)"].get_xydata()[0]) == [2, 0.9]
    assert png(figure).startswith(b"\x89PNG")


def test_importances_have_their_own_panel():
    _, axes = picture(ROWS, "val_loss", "minimize", {"optimizer.lr": 0.9, "flow.n_flows": 0.1}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["n_flows", "lr"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.9]
