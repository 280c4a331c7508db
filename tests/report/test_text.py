import io
from math import inf, nan

import pandas as pd
import pytest
from rich.console import Console

from flowdiff.report import read, text
from flowdiff.testing.fake_runs import write_run, write_runs


def heads(markdown):
    return [name.strip() for name in markdown.splitlines()[0].split("|")[1:-1]]


def printed(table, width, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    console.print(text.to_rich(table, "runs", width, **options))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("function", "given", "shown"),
    [
        ("mean_text", (12.3456, 0.4321, 3, 3), "12.35 ± 0.43"),
        ("mean_text", (12.3456, 0.04321, 3, 3), "12.346 ± 0.043"),
        ("mean_text", (1234.5, 123.4, 3, 3), "1,234 ± 123"),
        ("mean_text", (0.5, 0.0, 2, 2), "0.5 ± 0"),
        ("mean_text", (12.3456, nan, 1, 1), "12.35"),
        ("mean_text", (12.3456, nan, 1, 3), "12.35 (n=1)"),
        ("mean_text", (1e-7, 2e-8, 2, 2), "1e-07 ± 2e-08"),
        ("mean_text", (inf, nan, 2, 2), "inf"),
        *(("number_text", (x,), s) for x, s in ((1234567, "1,234,567"), (0.123456, "0.1235"), (0, "0"), (35.0, "35"))),
        *(("short_key", (k,), s) for k, s in (("flow.n_flows", "n_flows"), ("network.name", "network"))),
        *(("short_key", (key,), key) for key in ("seed", "name")),
    ],
)
def test_numbers_and_keys(function, given, shown):
    assert getattr(text, function)(*given) == shown


def test_markdown_has_the_best_in_bold_and_empty_cells(swept):
    markdown = text.to_markdown(swept.table)
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines()[2:])
    rows = [dict(zip(heads(markdown), line, strict=True)) for line in cells]
    assert heads(markdown)[:4] == ["network.name", "flow.n_flows", "activation.name", "seeds"]
    assert [row["seeds"] for row in rows] == ["3"] * 9
    (best,) = (row for row in rows if row["fd_cnn"].startswith("**"))
    assert (best["network.name"], best["bpd"]) == ("unet", "")  # a unet has no density
    assert sum(row["bpd"].startswith("**") for row in rows) == 1


def test_markdown_shows_a_diverged_seed_and_escapes_bars(table_of, tmp_path):
    assert "inf" in text.to_markdown(table_of(fid={1: [3.0, inf], 2: [1.0, 2.0]}))
    assert "| a\\|b |" in text.to_markdown(read([write_runs(tmp_path / "x", "loss.name=a|b", "loss.name=c")]).table)


def test_the_csv_holds_full_precision_and_every_metric(swept):
    frame = pd.read_csv(io.StringIO(text.to_csv(swept.table)))
    for part, at, precision in (("mean", 0, 1e-12), ("sd", 1, 1e-9), ("n", 2, 0)):
        expected = [row.metrics["fd_cnn"][at] for row in swept.table.rows]
        assert list(frame[f"fd_cnn.{part}"]) == pytest.approx(expected, rel=precision)
    assert (len(frame), set(frame["fd_cnn.n"]), frame["bpd.mean"].isna().sum()) == (9, {3}, 1)

    # Metrics that accompany another one are only here.
    assert "bpd_se.mean,bpd_se.sd" in text.to_csv(swept.table)
    shown = set(heads(text.to_markdown(swept.table)))
    assert {"fd_cnn", "bpd", "train_seconds"} <= shown
    assert not {"bpd_se", "fd_cnn_sd", "total_seconds"} & shown


def test_parameters_that_a_name_decides_are_in_a_note_and_have_no_column(tmp_path):
    cases = ['network.name=unet network.channels=[8,16] trainer.max_steps=300 result.overrides=["network.channels=8"]']
    cases += [f"network.name={name} trainer.max_steps=1000 result.overrides=[]" for name in ("mlp", "score_flow")]
    report = read([write_runs(tmp_path, *(f"{case} flow.n_flows={n}" for case in cases for n in (1, 2)))])
    table = report.table
    assert set(table.parameters) == {"network.name", "network.channels", "flow.n_flows", "trainer.max_steps"}
    assert heads(text.to_markdown(table))[:3] == ["network.name", "flow.n_flows", "seeds"]
    notes = " ".join(text.report_notes(report.runs, table))
    decided = "Decided by network.name: ", "network.channels (unet [8, 16])", "unet 300", "mlp 1000", "score_flow 1000"
    assert all(part in notes for part in decided)
    assert set(table.parameters) <= set(pd.read_csv(io.StringIO(text.to_csv(table))).columns)


def test_constant_values_are_in_a_note_and_have_no_column_and_incomplete_runs_are_listed(swept):
    assert "num_samples" not in text.to_markdown(swept.table)
    notes = " ".join(text.report_notes(swept.runs, swept.table))
    assert "num_samples 1,000" in notes
    assert "29 runs: 27 complete, 1 failed, 1 unfinished." in notes

    assert text.incomplete_runs_markdown(swept.runs).splitlines() == [
        "- `n_flows=10,activation=tanh` failed: RuntimeError: loss is nan at step 40 (last step 40 of 2000)",
        "- `n_flows=20` unfinished: last step 700 of 2000",
    ]


def test_older_results_leave_cells_empty(tmp_path):
    write_run(tmp_path / "new", flow={"n_flows": 1})
    (write_run(tmp_path / "old", flow={"n_flows": 2}) / "result.json").write_text('{"metrics": {}}')
    report = read([tmp_path])
    assert [row.metrics == {} for row in report.table.rows] == [False, True]
    assert text.to_markdown(report.table).splitlines()[-1].startswith("| 2 | 1 |  |")
    notes = text.report_notes(report.runs, report.table)
    assert any(note.startswith("Missing from result.json") and "in old." in note for note in notes)


@pytest.mark.parametrize("width", [60, 100, 400])
def test_the_terminal_table_fits(swept, width):
    shown = printed(swept.table, width)
    assert "fd_cnn" in shown
    assert "\x1b[1;32m" in shown  # the best is bold and green
    assert ("more column" in shown) == (width < 400)


def test_the_terminal_shows_the_best_of_many(table_of):
    shown = printed(table_of(fid={n: [100.0 - n] for n in range(1, 8)}), 120, most=3)
    assert "4 more rows" in shown
    assert [value in shown for value in ("93", "94", "95", "96")] == [True, True, True, False]
