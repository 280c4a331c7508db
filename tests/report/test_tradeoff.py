"""The curve of distance against accuracy along the guidance scale, and the sampling settings as columns."""

import pytest

from flowdiff.report import read
from flowdiff.report.plots import plots
from flowdiff.report.style import png
from flowdiff.testing.fake_runs import write_run

HEAD = "sampler,num_steps,guidance,guidance_scale,guidance_interval,fd_cnn,sample_accuracy,sample_accuracy_floor\n"


def drawn(folder, text):
    """The sampling table and the figures of a report on one run with this evaluations.csv."""
    (write_run(folder / "a") / "evaluations.csv").write_text(text)
    made = read([folder])
    return made.sampling, {plot.slug: plot.figure for plot in plots(made.runs, made.table, made.sampling)}


def test_each_guidance_has_a_curve_through_its_scales_in_order(tmp_path):
    rows = "heun,18,none,,,5.0,0.90,0.99\nheun,18,cfg,3,null,4.0,0.98,0.99\nheun,18,cfg,1.5,null,3.0,0.95,0.99\n"
    rows += 'heun,18,flow_classifier,1.5,null,3.5,0.94,0.99\nheun,18,cfg,3,"[0.2, 3.0]",2.0,0.97,0.99\n'
    table, figures = drawn(tmp_path, HEAD + rows)
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
    assert "guidance_tradeoff" not in drawn(tmp_path, HEAD + rows)[1]


def test_settings_that_rows_of_an_older_version_lack_have_no_column(tmp_path):
    head = "sampler,num_steps,guidance,guidance_scale,fd_cnn,guidance_interval,sampler_s_churn\n"
    table, _ = drawn(tmp_path, f"{head}heun,18,cfg,2,4.0,,\nheun,18,cfg,3,4.5,null,0.0\n")
    assert table.parameters == ["sampler", "num_steps", "guidance_scale"]
