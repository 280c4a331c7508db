"""The curves of several runs' health over each other."""

import pytest

from flowdiff.report import read
from flowdiff.report.health import health_curves
from flowdiff.report.plots import plots
from flowdiff.report.style import COLOURS
from flowdiff.runs.health import Curve, Denoising, Health
from flowdiff.testing.fake_runs import write_run

SIGMA = (0.01, 1.0, 80.0)
WIENER = (1e-4, 0.2, 0.6)


def health_of(*errors, wiener=WIENER, **more):
    return Health(Denoising(SIGMA, errors, wiener, 0.3, True, 0.6, (True,) * 3), **more)


@pytest.fixture
def report_of(tmp_path):
    def write(*found):
        for i, health in enumerate(found):
            write_run(tmp_path / str(i), flow={"n_flows": i + 1}, picture=False, rows=2, health=health)
        return read([tmp_path])

    return write


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_runs_are_overlaid_beside_what_needs_no_network(report_of):
    curve = Curve((0.1, 80.0), (0.5, -120.0))
    report = report_of(health_of(1e-4, 0.2, 300.0, eigenvalues=curve), health_of(1e-4, 0.1, 0.3, fokker_planck=curve))
    figure = health_curves(report.table)
    errors, eigenvalues, residuals = figure.axes
    drawn = {line.get_color(): list(line.get_ydata()) for line in errors.lines if line.get_color() in COLOURS}
    assert drawn == {COLOURS[0]: [1e-4, 0.2, 300.0], COLOURS[1]: [1e-4, 0.1, 0.3]}
    assert (errors.get_xscale(), errors.get_yscale()) == ("log", "log")
    assert [list(line.get_ydata()) for line in eigenvalues.lines if line.get_color() == COLOURS[0]] == [[0.5, -120.0]]
    assert [list(line.get_ydata()) for line in residuals.lines] == [[0.5, -120.0]]
    assert legend(figure) == ["n_flows=1", "n_flows=2", "variance of the data", "class means", "Wiener filter"]
    assert "health" in {plot.slug for plot in plots(report.runs, report.table, report.sampling)}


def test_a_line_that_is_not_the_same_for_all_runs_is_left_out(report_of):
    report = report_of(health_of(1, 1, 1), health_of(1, 1, 1, wiener=(1e-4, 0.1, 0.6)), health_of(1, 1, 1, wiener=None))
    assert legend(health_curves(report.table))[3:] == ["variance of the data", "class means"]


def test_a_report_without_health_has_no_such_plot_and_nothing_that_cannot_be_drawn_is_drawn(report_of, swept):
    assert health_curves(swept.table) is None
    report = report_of(Health(), health_of(float("nan"), 0.2, 1e300))
    (errors,) = health_curves(report.table).axes
    (line,) = (line for line in errors.lines if line.get_color() in COLOURS)
    assert list(line.get_ydata()) == [0.2]
