import io
import itertools

import numpy as np
import pytest
from PIL import Image

from flowdiff.report import read
from flowdiff.report.plots import by_parameter, pareto, pareto_front, plots, training_curves
from flowdiff.report.series import series
from flowdiff.report.style import COLOURS, png
from flowdiff.report.text import row_title
from flowdiff.testing.fake_runs import write_run, write_runs


def figures(report):
    """Every figure of a report by its file name."""
    return {plot.slug: plot.figure for plot in plots(report.runs, report.table, report.sampling)}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture(scope="module")
def drawn(swept):
    return figures(swept)


def test_every_question_has_its_plot_a_small_picture(drawn):
    assert set(drawn) == {
        *("by_network.name", "by_flow.n_flows", "by_activation.name", "by_sampling_steps"),
        *("against_nfe", "against_parameters", "against_train_seconds", "curves"),
    }

    for slug, figure in drawn.items():
        data = png(figure)
        assert np.asarray(Image.open(io.BytesIO(data)).convert("L")).std() > 5, f"{slug} is blank"
        assert len(data) < 100_000


def test_a_number_makes_lines_with_error_bars(drawn, swept):
    rows = [row for row in swept.table.rows if row_title(row).startswith("network=score_flow")]
    expected = np.array([row.metrics["fd_cnn"] for row in rows if row.settings["activation.name"] == "elu"])
    (container, *_) = drawn["by_flow.n_flows"].axes[0].containers
    line, _, (bars,) = container.lines
    assert list(line.get_xdata()) == [1, 2, 5, 10]
    np.testing.assert_allclose(line.get_ydata(orig=False), expected[:, 0])
    np.testing.assert_allclose([bar[1, 1] - bar[0, 1] for bar in bars.get_segments()], 2 * expected[:, 1])
    assert line.get_linestyle() == "-"


def test_a_name_makes_dots(drawn):
    axes = drawn["by_activation.name"].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["elu", "softplus"]
    assert {container.lines[0].get_linestyle() for container in axes.containers} == {"None"}


def test_many_settings_are_gathered_into_few_series(tmp_path):
    swept = itertools.product((1, 2, 3), (1, 2, 3, 4, 5), (0.001, 0.01, 0.1, 1))
    lines = (f"flow.n_flows={n} flow.width={width} optimizer.lr={lr}" for n, width, lr in swept)
    table = read([write_runs(tmp_path, *lines)]).table
    names, gathered = series(table.rows, ["flow.width", "optimizer.lr"])
    assert 1 < len(set(names)) <= len(COLOURS)
    assert gathered == ["flow.width"]
    figure = by_parameter(table, "flow.n_flows", ["fd_cnn"])
    assert figure.legends[0].get_title().get_text() == "median over width"


def test_a_parameter_that_a_name_decides_has_no_plot(tmp_path):
    """As in a sweep over cases: each network has its steps, two of them share a scaling."""
    cases = (("unet", 300, "edm"), ("mlp", 1000, "edm"), ("score_flow", 900, "score"))
    case = "network.name={} trainer.max_steps={} scaling.name={} flow.n_flows={}".format
    report = read([write_runs(tmp_path, *(case(*given, n) for given in cases for n in (1, 2)))])
    assert {"trainer.max_steps", "scaling.name"} <= set(report.table.parameters)
    found = figures(report)
    assert {slug for slug in found if slug.startswith("by_")} == {"by_flow.n_flows", "by_network.name"}
    # The series are not named by max_steps, though it has fewer values.
    assert set(legend(found["by_flow.n_flows"])) == {"network=unet", "network=mlp", "network=score_flow"}


def test_overridden_parameters_name_a_series_before_those_they_imply(tmp_path):
    """The activation that a flow implies has as many values as the flow, and stands before it in the config."""
    line = "activation.name={} flow.name={flow} result.overrides=[flow={flow}]".format
    lines = line("softplus", flow="linear_activation"), line("swish", flow="realnvp")
    names, _ = series(read([write_runs(tmp_path, *lines)]).table.rows, ["activation.name", "flow.name"])
    assert sorted(names) == ["flow=linear_activation", "flow=realnvp"]


def test_a_series_is_named_only_by_what_distinguishes_it(tmp_path):
    lines = "network.name=unet trainer.max_steps=300", "network.name=mlp trainer.max_steps=1000"
    rows = read([write_runs(tmp_path, *lines)]).table.rows
    assert series(rows, ["network.name", "trainer.max_steps"]) == (["network=mlp", "network=unet"], [])


def test_ways_of_sampling_are_told_apart_by_the_sampler(tmp_path):
    rows = "".join(f"{s},{k},{i}.5,{k}\n" for i, s in enumerate(("euler", "heun", "ddim")) for k in (10, 20, 50))
    (write_run(tmp_path / "a") / "evaluations.csv").write_text(f"sampler,num_steps,fd_cnn,nfe\n{rows}")
    table = read([tmp_path]).sampling
    names = [f"sampler={sampler}" for sampler in ("ddim", "euler", "heun") for _ in range(3)]
    assert series(table.rows, table.parameters) == (names, ["num_steps"])


def test_parameters_decided_by_the_plotted_one_make_no_series_and_nameless_series_no_legend_entry(tmp_path):
    cases = (("denoising", "edm", "''"), ("hybrid", "edm", "''"), ("nll", "''", 0.1), ("nll", "''", 0.2))
    lines = (f"loss.name={a} weighting.name={b} conditioner.drop={drop}" for a, b, drop in cases)
    figure = by_parameter(read([write_runs(tmp_path, *lines)]).table, "loss.name", ["fd_cnn"])
    assert legend(figure) == ["drop=0.1", "drop=0.2"]
    assert [len(container.lines[0].get_xdata()) for container in figure.axes[0].containers] == [1, 1, 2]


def test_every_point_of_a_front_has_a_legend_entry(tmp_path):
    flows = (("realnvp", 10), ("glow", 20), ("''", 30))  # a network without a flow has no name to show
    lines = (f"flow.name={name} result.parameters={count}" for name, count in flows)
    figure = pareto(read([write_runs(tmp_path, *lines)]).table, "parameters", ["fd_cnn"])
    assert sorted(legend(figure)) == ["flow=glow", "flow=realnvp", "others"]


@pytest.mark.parametrize(
    ("high", "shown"), [(9.0, ["0.5", "1", "2", "5", "10"]), (50000.0, ["1", "10", "100", "1k", "10k"])]
)
def test_a_logarithmic_axis_has_plain_labels(tmp_path, high, shown):
    lines = "flow.n_flows=1 metrics.fd_cnn=0.3", f"flow.n_flows=2 metrics.fd_cnn={high}"
    figure = by_parameter(read([write_runs(tmp_path, *lines)]).table, "flow.n_flows", ["fd_cnn"])
    png(figure)
    low, top = figure.axes[0].get_ylim()
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels if low <= label.get_position()[1] <= top] == shown


def test_several_guidance_scales_have_a_plot_and_a_constant_number_of_steps_has_none(tmp_path):
    rows = "".join(f"heun,18,cfg,{scale},{fd},35\n" for scale, fd in ((1, 3.0), (1.5, 2.5), (3, 6.0)))
    head = "sampler,num_steps,guidance,guidance_scale,fd_cnn,nfe\n"
    (write_run(tmp_path / "a") / "evaluations.csv").write_text(f"{head}heun,18,none,,3.0,35\n{rows}")
    found = figures(read([tmp_path]))
    assert not {"by_sampling_steps", "against_nfe"} & set(found)
    (container,) = found["by_guidance_scale"].axes[0].containers
    assert list(container.lines[0].get_xdata()) == [1, 1.5, 3]


def test_what_no_sampler_changes_is_not_plotted_against_sampling(tmp_path):
    """The likelihood of each run is the same by every number of steps; that of two runs differs."""
    for name, bpd in (("a", 2.5), ("b", 2.7)):
        rows = "".join(f"heun,{steps},{3 - steps / 20},{bpd},{steps}\n" for steps in (9, 18))
        folder = write_run(tmp_path / name, flow={"name": name})
        (folder / "evaluations.csv").write_text(f"sampler,num_steps,fd_cnn,bpd,nfe\n{rows}")
    found = figures(read([tmp_path]))
    for slug in ("by_sampling_steps", "against_nfe"):
        assert [axes.get_title("left") for axes in found[slug].axes] == ["fd_cnn ↓"]


@pytest.mark.parametrize("sign", [-1, 1])
def test_pareto_front_holds_the_points_that_no_other_beats(sign):
    points = [tuple(p) for p in np.random.default_rng(0).integers(0, 12, (60, 2)).tolist()]

    def beaten(p):
        return any(q[0] <= p[0] and sign * q[1] >= sign * p[1] and q != p for q in points)

    assert pareto_front(points, sign) == sorted({p for p in points if not beaten(p)})


def test_the_pareto_front_and_the_curves_of_every_run_are_drawn(drawn, swept):
    points = [(row.metrics["train_seconds"][0], row.metrics["fd_cnn"][0]) for row in swept.table.rows]
    lines = drawn["against_train_seconds"].axes[0].get_lines()
    front = next(line for line in lines if line.get_linestyle() == "--")
    expected = pareto_front(points, -1)
    np.testing.assert_allclose(np.column_stack(front.get_data()), expected)
    assert 1 < len(expected) < len(points)

    axes = drawn["curves"].axes[0]
    (collection,) = axes.collections
    assert len(collection.get_segments()) == len(swept.runs)
    assert axes.get_title("left") == "train_loss"


def test_a_curve_of_one_point_has_no_panel_and_without_curves_there_is_no_plot(tmp_path):
    curves = write_run(tmp_path / "a") / "metrics.csv"
    curves.write_text("step,train_loss,val_loss\n50,0.5,\n100,0.4,0.45\n")
    report = read([tmp_path])
    panels = training_curves(report.runs, report.table).axes
    assert [axes.get_title("left") for axes in panels] == ["train_loss"]
    curves.unlink()
    assert figures(read([tmp_path])) == {}


def test_missing_and_infinite_values_are_left_out(tmp_path):
    lines = ["flow.n_flows=1 metrics.fd_cnn=.inf", "flow.n_flows=2 flow.extra=3 metrics.fd_cnn=3.0"]
    lines += ["flow.n_flows=2 flow.extra=null result.metrics={} result.parameters=null"]
    found = {slug for slug, figure in figures(read([write_runs(tmp_path, *lines)])).items() if png(figure)}
    assert {"by_flow.n_flows", "by_flow.extra"} <= found


HEAD = "sampler,num_steps,guidance,guidance_scale,guidance_interval,fd_cnn,sample_accuracy,sample_accuracy_floor\n"


def sampled(folder, text):
    """The sampling table and the figures of a report on one run with this evaluations.csv."""
    (write_run(folder / "a") / "evaluations.csv").write_text(text)
    made = read([folder])
    return made.sampling, figures(made)


def test_each_guidance_has_a_curve_through_its_scales_in_order(tmp_path):
    rows = "heun,18,none,,,5.0,0.90,0.99\nheun,18,cfg,3,null,4.0,0.98,0.99\nheun,18,cfg,1.5,null,3.0,0.95,0.99\n"
    rows += 'heun,18,flow_classifier,1.5,null,3.5,0.94,0.99\nheun,18,cfg,3,"[0.2, 3.0]",2.0,0.97,0.99\n'
    table, figures = sampled(tmp_path, HEAD + rows)
    assert table.parameters == ["sampler", "num_steps", "guidance", "guidance_scale", "guidance_interval"]
    axes = figures["guidance_tradeoff"].axes[0]
    curves = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}
    assert curves["guidance=cfg, guidance_interval=null"] == [(0.95, 3.0), (0.98, 4.0)]
    assert curves["guidance=cfg, guidance_interval=[0.2, 3.0]"] == [(0.97, 2.0)]
    assert curves["guidance=none"] == [(0.9, 5.0)]
    assert sorted(text.get_text() for text in axes.texts) == ["1.5", "1.5", "3", "3"]
    assert png(figures["guidance_tradeoff"])


@pytest.mark.parametrize(
    "rows", ["heun,18,cfg,2,null,4,0.98,0.99\n", "heun,18,cfg,2,null,4,,\nheun,18,cfg,3,null,5,,\n"]
)
def test_without_several_scales_or_an_accuracy_there_is_no_curve(tmp_path, rows):
    assert "guidance_tradeoff" not in sampled(tmp_path, HEAD + rows)[1]


def test_settings_that_rows_of_an_older_version_lack_have_no_column(tmp_path):
    head = "sampler,num_steps,guidance,guidance_scale,fd_cnn,guidance_interval,sampler_s_churn\n"
    table, _ = sampled(tmp_path, f"{head}heun,18,cfg,2,4.0,,\nheun,18,cfg,3,4.5,null,0.0\n")
    assert table.parameters == ["sampler", "num_steps", "guidance_scale"]


def test_prompts_have_a_plot_against_the_guidance_scale_and_a_trade_off(tmp_path):
    """Each judge in its panel; the attributes one by one are in the CSV alone."""
    head = (
        "sampler,num_steps,guidance,guidance_scale,fd_cnn,prompts_seen,prompts_seen_digit,prompts_held_out,clip_score\n"
    )
    scales = (1, 2, 3, 5, 7.5)
    rows = "".join(
        f"ancestral,6,cfg,{scale},{3 + i},0.{9 - i},0.9,0.{7 - i},{30 + i}\n" for i, scale in enumerate(scales)
    )
    table, found = sampled(tmp_path, head + rows)
    panels = found["prompts_by_guidance_scale"].axes
    assert [axes.get_title("left") for axes in panels] == ["prompts_seen ↑", "prompts_held_out ↑", "clip_score ↑"]
    for axes, expected in zip(
        panels, ([0.9, 0.8, 0.7, 0.6, 0.5], [0.7, 0.6, 0.5, 0.4, 0.3], [30, 31, 32, 33, 34]), strict=True
    ):
        (container,) = axes.containers
        assert list(container.lines[0].get_xdata()) == [*scales]
        assert container.lines[0].get_ydata(orig=False) == pytest.approx(expected)
    (curve,) = [line for line in found["guidance_tradeoff"].axes[0].lines if len(line.get_xdata()) == len(scales)]
    assert list(curve.get_xdata()) == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert table.best("prompts_seen") == {0}
    assert "prompts_seen_digit" not in table.shown_metrics()
