import io

import numpy as np
import pytest
from fake_runs import write_run
from PIL import Image

from flowdiff.report.plots import COLOURS, by_parameter, pareto, pareto_front, plots, png, series, training_curves
from flowdiff.report.table import run_table, sampling_table
from flowdiff.runs.collect import collect


@pytest.fixture(scope="module")
def drawn(sweep):
    runs = collect([sweep])
    return {plot.slug: plot for plot in plots(runs, run_table(runs), sampling_table(runs))}


def test_every_question_has_its_plot(drawn):
    assert set(drawn) == {
        *("by_network.name", "by_flow.n_flows", "by_activation.name", "by_sampling_steps"),
        *("against_nfe", "against_parameters", "against_train_seconds", "curves"),
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


def test_what_follows_from_a_name_is_no_question_of_its_own(tmp_path):
    """As in a sweep over cases: each network has its steps, two of them share a scaling."""
    for network, steps, scaling in (("unet", 300, "edm"), ("mlp", 1000, "edm"), ("score_flow", 900, "score")):
        for n in (1, 2):
            settings = {"network": {"name": network}, "scaling": {"name": scaling}, "flow": {"n_flows": n}}
            write_run(tmp_path / f"{network}-{n}", rows=1, trainer={"max_steps": steps}, **settings)
    runs = collect([tmp_path])
    table = run_table(runs)
    assert {"trainer.max_steps", "scaling.name"} <= set(table.parameters)
    slugs = [plot.slug for plot in plots(runs, table, sampling_table(runs)) if plot.slug.startswith("by_")]
    assert sorted(slugs) == ["by_flow.n_flows", "by_network.name"]
    figure = by_parameter(table, "flow.n_flows", ["fd_cnn"])
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"network=unet", "network=mlp", "network=score_flow"}  # not max_steps, though it has fewer values


def test_a_series_is_named_by_what_was_asked_for_not_by_what_came_with_it(tmp_path):
    """The activation that a flow brings along has as many values as the flow, and stands before it in the config."""
    for flow, activation in (("linear_activation", "softplus"), ("realnvp", "swish")):
        settings = {"activation": {"name": activation}, "flow": {"name": flow}}
        write_run(tmp_path / flow, rows=1, result={"overrides": [f"flow={flow}"]}, **settings)
    table = run_table(collect([tmp_path]))
    names, _ = series(table.rows, ["activation.name", "flow.name"])
    assert sorted(names) == ["flow=linear_activation", "flow=realnvp"]


def test_ways_of_sampling_are_told_apart_by_the_sampler(tmp_path):
    rows = "".join(f"{s},{k},{i}.5,{k}\n" for i, s in enumerate(("euler", "heun", "ddim")) for k in (10, 20, 50))
    (write_run(tmp_path / "a") / "evaluations.csv").write_text(f"sampler,num_steps,fd_cnn,nfe\n{rows}")
    table = sampling_table(collect([tmp_path]))
    assert series(table.rows, table.parameters) == (
        ["sampler=ddim"] * 3 + ["sampler=euler"] * 3 + ["sampler=heun"] * 3,
        ["num_steps"],
    )


def test_a_series_is_named_by_what_tells_it_apart(tmp_path):
    for network, steps in (("unet", 300), ("mlp", 1000)):
        write_run(tmp_path / network, rows=1, trainer={"max_steps": steps}, network={"name": network})
    table = run_table(collect([tmp_path]))
    assert series(table.rows, ["network.name", "trainer.max_steps"]) == (["network=mlp", "network=unet"], [])


def test_what_follows_from_the_parameter_makes_no_series_and_what_has_no_name_no_entry(tmp_path):
    for loss, weighting in (("denoising", {"name": "edm"}), ("hybrid", {"name": "edm"}), ("nll", {"name": ""})):
        for drop in (0.1, 0.2) if loss == "nll" else ("",):
            settings = {"loss": {"name": loss}, "weighting": weighting, "conditioner": {"drop": drop}}
            write_run(tmp_path / f"{loss}-{drop}", rows=1, **settings)
    figure = by_parameter(run_table(collect([tmp_path])), "loss.name", ["fd_cnn"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["drop=0.1", "drop=0.2"]
    assert [len(container.lines[0].get_xdata()) for container in figure.axes[0].containers] == [1, 1, 2]


def test_every_point_of_a_front_has_an_entry(tmp_path):
    for name, parameters in (("realnvp", 10), ("glow", 20), ("", 30)):  # a network that is no flow has none
        write_run(tmp_path / f"run-{name}", rows=1, flow={"name": name}, result={"parameters": parameters})
    table = run_table(collect([tmp_path]))
    (legend,) = pareto(table, "parameters", ["fd_cnn"]).legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["flow=glow", "flow=realnvp", "others"]


@pytest.mark.parametrize(
    ("high", "shown"), [(9.0, ["0.5", "1", "2", "5", "10"]), (5e4, ["1", "10", "100", "1k", "10k"])]
)
def test_a_logarithmic_axis_has_plain_labels(tmp_path, high, shown):
    for n, fd in ((1, 0.3), (2, high)):
        write_run(tmp_path / f"{n}", flow={"n_flows": n}, metrics={"fd_cnn": fd}, rows=1)
    figure = by_parameter(run_table(collect([tmp_path])), "flow.n_flows", ["fd_cnn"])
    png(figure)
    low, top = figure.axes[0].get_ylim()
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels() if low <= t.get_position()[1] <= top]
    assert labels == shown


def test_a_sweep_of_the_guidance_scale_has_its_plot_and_steps_that_do_not_vary_have_none(tmp_path):
    folder = write_run(tmp_path / "a")
    rows = "".join(f"heun,18,cfg,{scale},{fd},35\n" for scale, fd in ((1, 3.0), (1.5, 2.5), (3, 6.0)))
    head = "sampler,num_steps,guidance,guidance_scale,fd_cnn,nfe\n"
    (folder / "evaluations.csv").write_text(f"{head}heun,18,none,,3.0,35\n{rows}")
    runs = collect([tmp_path])
    found = {plot.slug: plot for plot in plots(runs, run_table(runs), sampling_table(runs))}
    assert "by_sampling_steps" not in found
    assert "against_nfe" not in found
    (container,) = found["by_guidance_scale"].figure.axes[0].containers
    assert list(container.lines[0].get_xdata()) == [1, 1.5, 3]


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


def test_a_curve_of_one_point_has_no_panel(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "metrics.csv").write_text("step,train_loss,val_loss\n50,0.5,\n100,0.4,0.45\n")
    runs = collect([tmp_path])
    panels = training_curves(runs, run_table(runs)).axes
    assert [axes.get_title("left") for axes in panels] == ["train_loss"]


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
