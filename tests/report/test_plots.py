import io

import numpy as np
import pytest
from PIL import Image
from report.fake_runs import write_run

from flowdiff.report.collect import collect
from flowdiff.report.plots import COLOURS, by_parameter, pareto_front, plots, png, series, training_curves
from flowdiff.report.table import run_table, sampling_table


@pytest.fixture(scope="module")
def drawn(sweep):
    runs = collect([sweep])
    return {plot.slug: plot for plot in plots(runs, run_table(runs), sampling_table(runs))}


def test_every_question_has_its_plot(drawn):
    assert set(drawn) == {
        *("by_network.name", "by_flow.n_flows", "by_activation.name", "by_sampling_steps"),
        *("against_parameters", "against_train_seconds", "curves"),
    }


def test_figures_are_small_pictures_and_need_no_pyplot(drawn):
    for plot in drawn.values():
        data = png(plot.figure)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert pixels.std() > 5, f"{plot.slug} is blank"
        assert len(data) < 100_000


def test_a_number_makes_lines_with_error_bars(drawn, sweep):
    axes = drawn["by_flow.n_flows"].figure.axes[0]
    table = run_table(collect([sweep]))
    expected = [r.metrics["fd_cnn"] for r in table.rows if r.title.endswith("elu") and "score_flow" in r.title]
    (container, *_) = (c for c in axes.containers if len(c.lines[0].get_xdata()) == 4)
    assert list(container.lines[0].get_xdata()) == [1, 2, 5, 10]
    np.testing.assert_allclose(container.lines[0].get_ydata(orig=False), [mean for mean, _, _ in expected])
    heights = [bar[1, 1] - bar[0, 1] for bar in container.lines[2][0].get_segments()]
    np.testing.assert_allclose(heights, [2 * sd for _, sd, _ in expected])
    assert container.lines[0].get_linestyle() == "-"


def test_a_name_makes_dots(drawn):
    axes = drawn["by_activation.name"].figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["elu", "softplus"]
    assert {container.lines[0].get_linestyle() for container in axes.containers} == {"None"}


def test_many_settings_become_few_series(tmp_path):
    for n in range(1, 4):
        for width in range(1, 6):
            for lr in (1e-4, 1e-3, 1e-2, 1e-1):
                folder = tmp_path / f"{n}-{width}-{lr}"
                write_run(folder, flow={"n_flows": n, "width": width}, optimizer={"lr": lr}, rows=1, picture=False)
    table = run_table(collect([tmp_path]))
    names, gathered = series(table.rows, ["flow.width", "optimizer.lr"])
    assert 1 < len(set(names)) <= len(COLOURS)
    assert gathered == ["flow.width"]
    figure = by_parameter(table, "flow.n_flows", ["fd_cnn"])
    assert figure.legends[0].get_title().get_text() == "median over width"


@pytest.mark.parametrize("sign", [-1, 1])
def test_pareto_front_holds_what_nothing_beats(sign):
    points = [tuple(p) for p in np.random.default_rng(0).integers(0, 12, (60, 2)).tolist()]

    def beaten(p):
        return any(q[0] <= p[0] and sign * q[1] >= sign * p[1] and q != p for q in points)

    assert pareto_front(points, sign) == sorted({p for p in points if not beaten(p)})


def test_the_pareto_front_is_drawn(drawn, sweep):
    table = run_table(collect([sweep]))
    points = [(r.metrics["train_seconds"][0], r.metrics["fd_cnn"][0]) for r in table.rows]
    axes = drawn["against_train_seconds"].figure.axes[0]
    front = next(line for line in axes.get_lines() if line.get_linestyle() == "--")
    expected = pareto_front(points, -1)
    np.testing.assert_allclose(np.column_stack(front.get_data()), expected)
    assert 1 < len(expected) < len(points)


def test_curves_overlay_every_run(drawn, sweep):
    axes = drawn["curves"].figure.axes[0]
    (collection,) = axes.collections
    assert len(collection.get_segments()) == len(collect([sweep]))
    assert axes.get_title("left") == "train_loss"


def test_no_curves_no_plot(tmp_path):
    (write_run(tmp_path / "a") / "metrics.csv").unlink()
    runs = collect([tmp_path])
    assert training_curves(runs, run_table(runs)) is None
    assert list(plots(runs, run_table(runs), sampling_table(runs))) == []


def test_a_value_missing_from_some_rows_and_diverged_ones(tmp_path):
    write_run(tmp_path / "a", flow={"n_flows": 1}, metrics={"fd_cnn": float("inf")})
    write_run(tmp_path / "b", flow={"n_flows": 2, "extra": 3}, metrics={"fd_cnn": 3.0})
    write_run(tmp_path / "c", flow={"n_flows": 2, "extra": None}, result={"metrics": {}, "parameters": None})
    runs = collect([tmp_path])
    found = [plot.slug for plot in plots(runs, run_table(runs), sampling_table(runs)) if png(plot.figure)]
    assert "by_flow.n_flows" in found
    assert "by_flow.extra" in found
