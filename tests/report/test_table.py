import os
import statistics
from math import inf, nan

import pytest

from flowdiff.report import read
from flowdiff.report.table import direction
from flowdiff.report.text import column_notes, report_notes, to_markdown
from flowdiff.testing.fake_runs import write_run

LOWER = "fid fd_cnn bpd test_loss train_seconds kid"
HIGHER = "precision recall samples_per_second label_accuracy is prompts_seen prompts_held_out clip_score clip_recall_1"
DESCRIPTIVE = "parameters nfe num_samples num_test fd_cnn_floor bpd_se fd_cnn_sd extractor_accuracy"
DESCRIPTIVE += " num_captions num_candidates prompts_seen_floor prompts_seen_digit_floor clip_score_floor"


@pytest.mark.parametrize(("metrics", "sign"), [(LOWER, -1), (HIGHER, 1), (DESCRIPTIVE, 0)])
def test_direction(metrics, sign):
    assert {metric: direction(metric) for metric in metrics.split()} == dict.fromkeys(metrics.split(), sign)


def test_mean_and_sd_over_seeds(table_of):
    values = [3.0, 4.5, 7.25]
    table = table_of(fid={1: values, 2: [2.0]})
    assert table.parameters == ["flow.n_flows"]
    assert table.rows[0].metrics["fid"] == pytest.approx((statistics.mean(values), statistics.stdev(values), 3))
    assert table.rows[0].seeds == 3
    assert table.rows[1].metrics["fid"] == pytest.approx((2.0, nan, 1), nan_ok=True)


def test_rows_are_in_natural_order(table_of):
    table = table_of(fid={10: [1.0], 9: [1.0], 100: [1.0]})
    assert [row.settings["flow.n_flows"] for row in table.rows] == [9, 10, 100]


def test_the_best_is_the_lowest_unless_higher_is_better(table_of):
    values = {"fid": (3, 1, inf), "precision": (0.5, 0.4, nan), "bpd": (2, 2, 3), "nfe": (1, 2, 3), "kid": (1, 1, 1)}
    table = table_of(**{metric: {n: [value] for n, value in enumerate(row, 1)} for metric, row in values.items()})
    best = {"fid": {1}, "precision": {0}, "bpd": {0, 1}, "nfe": set(), "kid": set()}  # of equal values none is best
    assert {metric: table.best(metric) for metric in values} == best
    assert table.ranked() == [1, 0, 2]


def test_a_repeated_seed_counts_once_and_is_named(tmp_path):
    for i, name in enumerate(("later", "earlier")):
        folder = write_run(tmp_path / name, metrics={"fd_cnn": 5.0 + i})
        os.utime(folder / "result.json", (1000 - i, 1000 - i))
    report = read([tmp_path])
    assert [(row.seeds, row.metrics["fd_cnn"][0]) for row in report.table.rows] == [(1, 5.0)]
    assert any("same settings and seed: earlier." in note for note in report_notes(report.runs, report.table))


def test_no_run_is_complete(tmp_path):
    write_run(tmp_path / "a", complete=False)
    report = read([tmp_path])
    assert (report.table.rows, report.table.metrics) == ([], [])
    assert report_notes(report.runs, report.table) == ["1 run: 1 unfinished."]


def test_sampling_table_averages_over_runs_and_seeds(tmp_path):
    for seed in range(2):
        (write_run(tmp_path / f"{seed}", seed) / "evaluations.csv").write_text(
            "sampler,num_steps,schedule,guidance_scale,num_samples,seed,nfe,fid\n"
            f"heun,10,karras,,500,0,19,{4 + seed}\nheun,10,karras,,500,1,19,{6 + seed}\neuler,10,karras,,500,0,10,9\n"
            "heun,10,karras,,500,0,19,4\n"
        )
    table = read([tmp_path]).sampling
    assert table.parameters == ["sampler", "num_steps"]
    assert [row.settings["sampler"] for row in table.rows] == ["euler", "heun"]
    assert table.rows[1].metrics["fid"][0] == pytest.approx((4 + 6 + 4 + 7) / 4)  # of a repeated row the last counts
    assert table.rows[1].seeds == 4
    assert table.best("fid") == {1}
    assert to_markdown(table).startswith("| sampler | seeds | fid |")
    assert column_notes(table) == ["The same in every row: num_steps 10."]
