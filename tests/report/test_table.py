import io
import statistics

import pandas as pd
import pytest
from fake_runs import write_run
from rich.console import Console

from flowdiff.report.table import (
    cell,
    direction,
    number,
    problems_markdown,
    run_table,
    sampling_table,
    sentences,
    short,
    to_csv,
    to_markdown,
    to_rich,
    unsaid,
)
from flowdiff.runs.collect import collect


def table_of(folder, **metrics):
    """One row per value of n_flows, from lists of per-seed values: {metric: {n_flows: [values]}}."""
    settings = {n for values in metrics.values() for n in values}
    for n in settings:
        seeds = max(len(values.get(n, [])) for values in metrics.values())
        for seed in range(seeds):
            given = {m: values[n][seed] for m, values in metrics.items() if seed < len(values.get(n, []))}
            result = {"metrics": given}
            write_run(folder / f"{n}-{seed}", seed, result=result, flow={"n_flows": n}, picture=False, rows=2)
    return run_table(collect([folder]))


@pytest.mark.parametrize(
    ("metric", "sign"),
    [
        ("fid", -1),
        ("fd_cnn", -1),
        ("bpd", -1),
        ("test_loss", -1),
        ("train_seconds", -1),
        ("kid", -1),
        ("precision", 1),
        ("recall", 1),
        ("samples_per_second", 1),
        ("label_accuracy", 1),
        ("is", 1),
        ("parameters", 0),
        ("nfe", 0),
        ("num_samples", 0),
        ("num_test", 0),
        ("fd_cnn_floor", 0),
        ("bpd_se", 0),
        ("fd_cnn_sd", 0),
        ("extractor_accuracy", 0),
    ],
)
def test_direction(metric, sign):
    assert direction(metric) == sign


def test_mean_and_sd_over_seeds(tmp_path):
    values = {1: [3.0, 4.5, 7.25], 2: [2.0]}
    table = table_of(tmp_path, fid=values)
    assert table.parameters == ["flow.n_flows"]
    mean, sd, n = table.rows[0].metrics["fid"]
    assert mean == pytest.approx(statistics.mean(values[1]))
    assert sd == pytest.approx(statistics.stdev(values[1]))
    assert (n, table.rows[0].seeds) == (3, 3)
    assert table.rows[1].metrics["fid"][0] == 2.0
    assert table.rows[1].metrics["fid"][2] == 1


def test_rows_stand_in_natural_order(tmp_path):
    table = table_of(tmp_path, fid={10: [1.0], 9: [1.0], 100: [1.0]})
    assert [row.settings["flow.n_flows"] for row in table.rows] == [9, 10, 100]


def test_best_is_lowest_except_where_more_is_better(tmp_path):
    table = table_of(
        tmp_path,
        fid={1: [3.0], 2: [1.0], 3: [float("inf")]},
        precision={1: [0.5], 2: [0.4], 3: [float("nan")]},
        bpd={1: [2.0], 2: [2.0], 3: [3.0]},
        nfe={1: [1], 2: [2], 3: [3]},
        kid={1: [1.0], 2: [1.0], 3: [1.0]},
    )
    assert table.best("fid") == {1}
    assert table.best("precision") == {0}
    assert table.best("bpd") == {0, 1}
    assert table.best("nfe") == set()
    assert table.best("kid") == set()  # all equal: nothing is best
    assert table.ranked() == [1, 0, 2]


def test_a_diverged_seed_shows_in_its_row(tmp_path):
    table = table_of(tmp_path, fid={1: [3.0, float("inf")], 2: [1.0, 2.0]})
    assert "inf" in to_markdown(table)


def test_a_repeated_seed_counts_once_and_is_named(tmp_path):
    import os

    for i, name in enumerate(("later", "earlier")):
        folder = write_run(tmp_path / name, metrics={"fd_cnn": 5.0 + i})
        os.utime(folder / "result.json", (1000 - i, 1000 - i))
    runs = collect([tmp_path])
    table = run_table(runs)
    assert [row.seeds for row in table.rows] == [1]
    assert table.rows[0].metrics["fd_cnn"][0] == 5.0
    assert any("same settings and seed: earlier." in sentence for sentence in sentences(runs, table))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ((12.3456, 0.4321, 3, 3), "12.35 ± 0.43"),
        ((12.3456, 0.04321, 3, 3), "12.346 ± 0.043"),
        ((1234.5, 123.4, 3, 3), "1,234 ± 123"),
        ((0.5, 0.0, 2, 2), "0.5 ± 0"),
        ((12.3456, float("nan"), 1, 1), "12.35"),
        ((12.3456, float("nan"), 1, 3), "12.35 (n=1)"),
        ((1e-7, 2e-8, 2, 2), "1e-07 ± 2e-08"),
        ((float("inf"), float("nan"), 2, 2), "inf"),
    ],
)
def test_cell(given, shown):
    assert cell(*given) == shown


@pytest.mark.parametrize(("value", "shown"), [(1234567, "1,234,567"), (0.123456, "0.1235"), (0, "0"), (35.0, "35")])
def test_number(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("key", "shown"), [("flow.n_flows", "n_flows"), ("network.name", "network"), ("seed", "seed"), ("name", "name")]
)
def test_short(key, shown):
    assert short(key) == shown


def test_markdown_has_the_best_in_bold_and_empty_cells(sweep):
    runs = collect([sweep])
    lines = to_markdown(run_table(runs)).splitlines()
    head = [name.strip() for name in lines[0].split("|")[1:-1]]
    rows = [dict(zip(head, (c.strip() for c in line.split("|")[1:-1]), strict=True)) for line in lines[2:]]
    assert head[:4] == ["network.name", "flow.n_flows", "activation.name", "seeds"]
    assert len(rows) == 9
    assert {row["seeds"] for row in rows} == {"3"}
    bold = [row for row in rows if row["fd_cnn"].startswith("**")]
    assert [row["network.name"] for row in bold] == ["unet"]
    assert bold[0]["bpd"] == ""  # a unet has no density
    assert sum(row["bpd"].startswith("**") for row in rows) == 1


def test_markdown_escapes_bars(tmp_path):
    write_run(tmp_path / "a", loss={"name": "a|b"})
    write_run(tmp_path / "b", loss={"name": "c"})
    assert "| a\\|b |" in to_markdown(run_table(collect([tmp_path])))


def test_csv_holds_full_precision(sweep, tmp_path):
    table = run_table(collect([sweep]))
    to_csv(table, tmp_path / "report.csv")
    frame = pd.read_csv(tmp_path / "report.csv")
    assert len(frame) == 9
    for i, row in enumerate(table.rows):
        assert frame["fd_cnn.mean"][i] == pytest.approx(row.metrics["fd_cnn"][0], rel=1e-12)
        assert frame["fd_cnn.sd"][i] == pytest.approx(row.metrics["fd_cnn"][1], rel=1e-9)
    assert frame["bpd.mean"].isna().sum() == 1
    assert (frame["fd_cnn.n"] == 3).all()


def test_what_only_accompanies_another_metric_is_in_the_csv_alone(sweep, tmp_path):
    table = run_table(collect([sweep]))
    to_csv(table, tmp_path / "report.csv")
    assert "bpd_se.mean,bpd_se.sd" in (tmp_path / "report.csv").read_text()
    head = [name.strip() for name in to_markdown(table).splitlines()[0].split("|")]
    assert {"fd_cnn", "bpd", "train_seconds"} <= set(head)
    assert not {"bpd_se", "fd_cnn_sd", "total_seconds"} & set(head)


def test_what_follows_from_a_name_is_a_sentence_and_no_column(tmp_path):
    for network, steps, channels in (("unet", 300, [8, 16]), ("mlp", 1000, None), ("score_flow", 1000, None)):
        for n in (1, 2):
            chosen = {"name": network} | ({"channels": channels} if channels else {})
            settings = {"network": chosen, "flow": {"n_flows": n}, "trainer": {"max_steps": steps}}
            overrides = ["network.channels=[8,16]"] if channels else []
            write_run(tmp_path / f"{network}-{n}", rows=1, result={"overrides": overrides}, **settings)
    runs = collect([tmp_path])
    table = run_table(runs)
    assert set(table.parameters) == {"network.name", "network.channels", "flow.n_flows", "trainer.max_steps"}
    assert to_markdown(table).startswith("| network.name | flow.n_flows | seeds |")
    said = " ".join(sentences(runs, table))
    for part in ("With network.name go ", "network.channels (unet [8, 16])", "unet 300", "mlp 1000", "score_flow 1000"):
        assert part in said
    to_csv(table, tmp_path / "report.csv")
    assert set(table.parameters) <= set(pd.read_csv(tmp_path / "report.csv").columns)


def test_what_is_constant_is_said_not_shown(sweep):
    runs = collect([sweep])
    table = run_table(runs)
    assert "num_samples" not in to_markdown(table)
    said = " ".join(sentences(runs, table))
    assert "num_samples 1,000" in said
    assert "29 runs: 27 complete, 1 failed, 1 unfinished." in said


def test_incomplete_runs_are_listed(sweep):
    listed = problems_markdown(collect([sweep])).splitlines()
    assert listed == [
        "- `n_flows=10,activation=tanh` failed: RuntimeError: loss is nan at step 40 (last step 40 of 2000)",
        "- `n_flows=20` unfinished: last step 700 of 2000",
    ]


def test_older_results_leave_cells_empty(tmp_path):
    write_run(tmp_path / "new", flow={"n_flows": 1})
    (write_run(tmp_path / "old", flow={"n_flows": 2}) / "result.json").write_text('{"metrics": {}}')
    runs = collect([tmp_path])
    table = run_table(runs)
    assert [row.metrics == {} for row in table.rows] == [False, True]
    assert to_markdown(table).splitlines()[-1].startswith("| 2 | 1 |  |")
    assert any(s.startswith("Missing from result.json") and "in old." in s for s in sentences(runs, table))


@pytest.mark.parametrize("width", [60, 100, 400])
def test_the_terminal_table_fits(sweep, width):
    table = run_table(collect([sweep]))
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    console.print(to_rich(table, "runs", width))
    printed = console.file.getvalue()
    assert "fd_cnn" in printed
    assert "\x1b[1;32m" in printed  # the best stand out
    assert ("more column" in printed) == (width < 400)


def test_the_terminal_shows_the_best_of_many(tmp_path):
    table = table_of(tmp_path, fid={n: [100.0 - n] for n in range(1, 8)})
    console = Console(file=io.StringIO(), width=120)
    console.print(to_rich(table, "runs", 120, most=3))
    printed = console.file.getvalue()
    assert "4 more rows" in printed
    assert all(value in printed for value in ("95", "94", "93"))
    assert "96" not in printed


def test_no_run_is_complete(tmp_path):
    write_run(tmp_path / "a", complete=False)
    runs = collect([tmp_path])
    table = run_table(runs)
    assert (table.rows, table.metrics) == ([], [])
    assert sentences(runs, table) == ["1 run: 1 unfinished."]


def test_sampling_table_averages_over_runs_and_seeds(tmp_path):
    for seed in range(2):
        folder = write_run(tmp_path / f"{seed}", seed)
        (folder / "evaluations.csv").write_text(
            "sampler,num_steps,schedule,guidance_scale,num_samples,seed,nfe,fid\n"
            f"heun,10,karras,,500,0,19,{4 + seed}\nheun,10,karras,,500,1,19,{6 + seed}\neuler,10,karras,,500,0,10,9\n"
            "heun,10,karras,,500,0,19,4\n"
        )
    table = sampling_table(collect([tmp_path]))
    assert table.parameters == ["sampler", "num_steps"]
    assert [row.settings["sampler"] for row in table.rows] == ["euler", "heun"]
    assert table.rows[1].metrics["fid"][0] == pytest.approx((4 + 6 + 4 + 7) / 4)  # a repeated row counts once, the last
    assert table.rows[1].seeds == 4
    assert table.best("fid") == {1}
    assert to_markdown(table).startswith("| sampler | seeds | fid |")
    assert unsaid(table) == ["The same in every row: num_steps 10."]
