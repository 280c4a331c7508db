"""Results without a number: null and a reason on disk, a dash in the table, and old files with NaN still load."""

import copy
import json
import math
import pickle

import pytest

from flowdiff.runs.collect import read_run
from flowdiff.runs.metrics_csv import MetricsCSV
from flowdiff.runs.result_table import rows_of, show
from flowdiff.runs.run_folder import RunFolder
from flowdiff.runs.undefined import Undefined, explained, read, reasons, written

NUMBERS = {"test_loss": 0.5, "test_loss_se": Undefined("one sample"), "bpd": math.nan, "bpd_se": math.inf, "n": 3}
WHY = {"test_loss_se": "one sample", "bpd": "the result is nan", "bpd_se": "the result is inf"}


def test_a_reason_survives_copies_and_files():
    for again in (copy.deepcopy(NUMBERS), pickle.loads(pickle.dumps(NUMBERS)), explained(NUMBERS)):
        assert reasons(again) == WHY
        assert math.isnan(again["test_loss_se"])
    assert written(NUMBERS) == {"test_loss": 0.5, "test_loss_se": None, "bpd": None, "bpd_se": None, "n": 3}
    assert reasons(read(written(NUMBERS), WHY)) == WHY


def test_no_file_of_a_run_holds_nan(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_config({})
    folder.write_result({"run_id": "abc", "metrics": NUMBERS})
    folder.write_pruned(3, "val_loss", math.nan, "study")
    MetricsCSV(folder.metrics).log_metrics({**NUMBERS, "loss": -math.inf}, 3)
    for file in (folder.result_file, folder.pruned_file):
        json.loads(file.read_text(), parse_constant=pytest.fail)  # called for NaN and infinities
    assert folder.metrics.read_text().splitlines()[1] == "3,0.5,,,,3,"
    assert folder.result()["reasons"] == WHY
    assert folder.pruned()["value"] is None
    assert read_run(tmp_path, "it").metrics == {"test_loss": 0.5, "n": 3}
    folder.result_file.unlink()
    assert read_run(tmp_path, "it").reason.endswith("val_loss is not finite")


def test_a_result_without_such_numbers_is_as_before(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_result({"metrics": {"test_loss": 0.5}})
    assert json.loads(folder.result_file.read_text()) == {"metrics": {"test_loss": 0.5}}


def test_the_table_has_no_nan_and_says_why():
    rows = {row[0]: row[1:] for row in rows_of(explained(NUMBERS))}
    assert rows["denoising test loss"][0] == "0.5000 (n = 1)"
    assert rows["bits/dim"][0] == "–"
    assert rows["no number"] == ("–", "bpd: the result is nan")


def test_an_old_result_is_shown(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    folder.result_file.write_text('{"metrics": {"test_loss": 0.5, "test_loss_se": NaN, "bpd": NaN}}')
    show(folder.result(), tmp_path)
    assert "nan" not in capsys.readouterr().out
