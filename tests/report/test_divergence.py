"""Runs whose loss falls while their distance rises are marked in the table and named beside it."""

import math

import pytest

from flowdiff.report import read
from flowdiff.report.divergence import rising
from flowdiff.report.text import report_notes, to_csv, to_markdown
from flowdiff.testing.fake_runs import write_run

FALLING, RISING = (lambda u: 2 - u), (lambda u: 1 + u)
VALLEY = lambda u: 1 + 4 * (u - 0.3) ** 2  # noqa: E731  # falls, and rises to three times its least value


def run(folder, loss, distance, evaluations=12, n_flows=3):
    """A run whose curves are these functions of the share of its steps; its last distance is of more samples."""
    write_run(folder, metrics={"fd_cnn": 1.5, "bpd": 2.0}, flow={"n_flows": n_flows})
    lines = ["step,train_loss,fd_cnn"]
    for i in range(1, 101):
        u, at = i / 100, i % (100 // evaluations) == 0
        lines.append(f"{10 * i},{loss(u)},{distance(u) if at else ''}")
    (folder / "metrics.csv").write_text("\n".join([*lines, "1001,,0.1"]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("loss", "distance", "flagged"),
    [
        (FALLING, RISING, True),
        (FALLING, VALLEY, True),
        (FALLING, FALLING, False),
        (RISING, RISING, False),  # both say so
        (FALLING, lambda u: 1 + 0.05 * math.sin(40 * u), False),  # the noise of few samples
    ],
)
def test_a_loss_that_falls_while_the_distance_rises_is_found(loss, distance, flagged, tmp_path):
    run(tmp_path / "a", loss, distance)
    (found,) = read([tmp_path]).runs
    assert bool(rising(found)) is flagged


def test_few_evaluations_say_nothing(tmp_path):
    run(tmp_path / "a", FALLING, RISING, evaluations=5)
    assert rising(read([tmp_path]).runs[0]) == ""


def test_it_is_marked_in_the_table_and_named_beside_it(tmp_path):
    run(tmp_path / "good", FALLING, FALLING)
    run(tmp_path / "bad", FALLING, RISING, n_flows=4)
    report = read([tmp_path])
    (note,) = (note for note in report_notes(report.runs, report.table) if note.startswith("↑"))
    assert "bad (fd_cnn from 1.2 at step 80 to 1.84 at 960)" in note
    assert "good" not in note
    table = to_markdown(report.table)
    assert table.count("1.5 ↑") == 1
    assert "2 ↑" not in table  # bits/dim are no distance
    assert "↑" not in to_csv(report.table)
