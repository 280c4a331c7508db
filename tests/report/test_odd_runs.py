"""One bad run never costs the others their row: reports of folders that hold damaged, foreign and oddly named runs."""

import io
import json
import math
import os
import re
import warnings

import pytest
import yaml
from browser import CHROMIUM, DRIVER, chromium
from rich.console import Console

from flowdiff.cli import cancel, status
from flowdiff.cli.report import main
from flowdiff.errors import RunError
from flowdiff.report import read
from flowdiff.runs.collect import collect, evaluations
from flowdiff.testing.fake_runs import write_run

EVIL = "<script>alert(1)</script>|`x`\n*a* $\\frac$ [/b] \ud800\x1b[31m"
FOREIGN = "model: resnet\nlr: 0.1\n"


def change(folder, file, /, **values):
    """Change values in a JSON or YAML file of a run."""
    load, dump = (yaml.safe_load, yaml.safe_dump) if file.endswith("yaml") else (json.loads, json.dumps)
    (folder / file).write_text(dump({**load((folder / file).read_text()), **values}))


def unfinish(run, file, text):
    """Replace the result of a run by another file."""
    (run / "result.json").unlink()
    (run / file).write_text(text)


# How each run is damaged: its name → what is done to it. All have another setting than the good ones.
ODD = {
    "intbig": lambda run: change(run, "result.json", metrics={"fd_cnn": 3.0, "big": 10**400}, seed=10**400),
    "seedlist": lambda run: change(run, "result.json", seed=[1, 2], overrides=7),
    "huge": lambda run: change(run, "result.json", metrics={"fd_cnn": 1e308, "bpd": -1e308, "test_loss": math.nan}),
    "nullmetrics": lambda run: change(run, "result.json", metrics=None),
    "listmetrics": lambda run: change(run, "result.json", metrics=[1, 2]),
    "text": lambda run: change(run, "result.json", metrics={"fd_cnn": "0.5"}, name=EVIL, overrides=[EVIL]),
    "names": lambda run: change(run, "result.json", metrics={"fd_cnn": 2.0, EVIL: 1.0, 300 * "x": 1.0}),
    "half": lambda run: (run / "result.json").write_text('{"metr'),
    "null": lambda run: (run / "result.json").write_text("null"),
    "nostep": lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"),
    "binarycsv": lambda run: (run / "metrics.csv").write_bytes(b"\0\xff\xfe\n,,,\n"),
    "evals": lambda run: (run / "evaluations.csv").write_bytes(
        b"sampler,fd_cnn,big\n<b>\xff,x,%s\nheun,1" % (400 * b"9")
    ),
    "list": lambda run: change(run, "config.yaml", flow=[1, 2, 3]),
    "nested": lambda run: change(run, "config.yaml", flow={"name": {"a": 1}}, seed=[1]),
    "long": lambda run: change(run, "config.yaml", flow={"name": 5000 * "x", "n_flows": 10**400}),
    "evil": lambda run: change(run, "config.yaml", flow={"name": EVIL.replace("\ud800", ""), "a|b": EVIL[:9]}),
    "empty": lambda run: (run / "config.yaml").write_text(""),
    "tab": lambda run: (run / "config.yaml").write_text("a:\n\tb: 1\n"),
    "foreign": lambda run: (run / "config.yaml").write_text(FOREIGN),
    "failed": lambda run: unfinish(run, "failed.json", json.dumps({"error": EVIL})),
    "failednull": lambda run: unfinish(run, "failed.json", "null"),
    "pruned": lambda run: unfinish(run, "pruned.json", '{"step": "x", "value": "q"}'),
    "png": lambda run: (run / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)),
    "<b>|#%?": lambda run: None,
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Two good runs and one of each odd kind, below names that no page or table may take for its own marks."""
    root = tmp_path_factory.mktemp("odd") / "runs"
    for n in (1, 2):
        write_run(root / f"good-{n}", flow={"n_flows": n}, evaluations=True)
    for i, (name, damage) in enumerate(ODD.items()):
        damage(write_run(root / name, flow={"n_flows": 3 + i}, rows=4, picture=name == "png"))
    os.symlink("self", root / "self")
    return root


@pytest.fixture(scope="module")
def out(odd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "constrained_layout")  # a name may be too long for its figure
        assert main([str(odd), "--out", str(folder)]) == 0
    return folder


def test_every_run_has_its_row_or_its_reason(odd):
    report = read([odd])
    found = {run.label: run for run in report.runs}
    assert found.keys() == {*ODD, "good-1", "good-2"}
    in_table = {entry.run.label for row in report.table.rows for entry in row.entries}
    incomplete = {"half", "null", "empty", "tab", "foreign", "failed", "failednull", "pruned"}
    assert in_table == found.keys() - incomplete
    assert all(found[label].reason for label in incomplete)
    assert found["foreign"].reason == "config.yaml is of another program: it has model, lr and no network or dataset"
    assert found["intbig"].damage == ("seed in result.json", "metrics.big in result.json")
    assert (found["intbig"].seed, found["seedlist"].seed) == (0, 0)  # from config.yaml
    assert found["intbig"].metrics["fd_cnn"] == 3.0
    assert found["nostep"].damage == ("metrics.csv (it has no column step)",)
    assert found["pruned"].reason.startswith("pruned.json cannot be read, its step, metric or value")
    assert evaluations(found["evals"])[1] == {"sampler": "heun", "fd_cnn": 1}


def test_a_damaged_run_does_not_replace_a_whole_one_of_the_same_setting_and_seed(tmp_path):
    write_run(tmp_path / "good", picture=False)
    ODD["nullmetrics"](write_run(tmp_path / "later", picture=False))
    os.utime(tmp_path / "good" / "result.json", (0, 0))
    (row,) = read([tmp_path]).table.rows
    assert [entry.run.label for entry in row.entries] == ["good"]


def test_the_report_is_written_and_escapes_every_name(odd, out):
    markdown = (out / "report.md").read_text()
    assert {path.name for path in out.iterdir()} == {"report.csv", "sampling.csv", "report.md", "report.html", "plots"}
    assert "<script" not in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables}) == 2  # the columns of two tables
    assert "metrics.csv (it has no column step) of nostep" in markdown
    assert "seed in result.json, metrics.big in result.json of intbig" in markdown
    page = (out / "report.html").read_text()
    assert page.count("</script>") == 2
    assert "<script>alert" not in page


def test_the_terminal_shows_names_as_they_are(odd):
    for width in (60, 400):
        console = Console(file=io.StringIO(), width=width)
        read([odd]).show(console)
        console.file.getvalue().encode()
    assert "failed: failed: <script>alert(1)</script>|`x` *a* $\\frac$ [/b] \ufffd\ufffd[31m" in console.file.getvalue()


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver here")
def test_no_name_runs_as_a_script(out, tmp_path):
    with chromium(tmp_path) as browser:
        browser.open(out / "report.html")
        browser.choose("#view", "every run")
        assert len(browser.texts("#table tbody tr")) == 2 + len(ODD)
        assert browser.errors() == []


def test_status_and_cancel_show_the_others(odd, capsys):
    assert status.main([str(odd), "--json"]) == 0
    found = {one["run"]: one for one in json.loads(capsys.readouterr().out, parse_constant=pytest.fail)}
    assert found.keys() == {*ODD, "good-1", "good-2"} - {"foreign"}
    states = {name: one["state"] for name, one in found.items()}
    odd_ones = {"half": "stopped", "null": "stopped", "failed": "failed", "failednull": "failed", "pruned": "stopped"}
    assert {name: state for name, state in states.items() if state != "done"} == odd_ones
    assert (found["nostep"]["step"], found["nostep"]["loss"], found["good-1"]["step"]) == (0, None, 2000)
    assert status.main([str(odd)]) == cancel.main([str(odd)]) == 0
    assert status.main([str(odd / "empty")]) == 0


def test_a_foreign_folder_is_a_sentence_and_nothing_is_written_into_it(tmp_path, monkeypatch):
    (tmp_path / "app" / ".hydra").mkdir(parents=True)
    (tmp_path / "app" / ".hydra" / "config.yaml").write_text("a: 1\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text(FOREIGN)
    (tmp_path / "foreign" / "result.json").write_text('{"accuracy": 0.9}')
    for name, sentence in (
        ("foreign", "contains no run of flowdiff: its config.yaml is of another"),
        ("app", "no run:"),
    ):
        with pytest.raises(RunError, match=sentence):
            main([str(tmp_path / name)])
    for command in (status.main, cancel.main):
        with pytest.raises(
            RunError, match=r"is not a run of flowdiff, .* \(it has model, lr and no network or dataset\)"
        ):
            command([str(tmp_path / "foreign")])
        with pytest.raises(RunError, match="contains no run"):
            command([str(tmp_path / "app")])
        with pytest.raises(RunError, match="contains no run"):
            command([str(tmp_path)])
    assert sorted(os.listdir(tmp_path / "foreign")) == ["config.yaml", "result.json"]


def test_a_folder_that_cannot_be_read_has_a_row(tmp_path, monkeypatch):
    write_run(tmp_path / "good")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def closed(path):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert {run.label: run.state for run in collect([tmp_path])} == {"closed": "unreadable", "good": "complete"}
