"""One test sample: no NaN is shown or written as a number, and the reason stands beside it."""

import json
import math

import pytest
import torch
from given_data import GivenData
from runs import TINY, train

from flowdiff import registry
from flowdiff.data.base import TensorSplit
from flowdiff.evaluation.densities.likelihood import mean_and_error
from flowdiff.runs.result_table import rows_of, show
from flowdiff.runs.run_folder import RunFolder
from flowdiff.runs.undefined import ONE_SAMPLE, TOO_FEW, Undefined

COMPARE = {
    "precision_recall": {"neighbours": 3, "num_samples": 100},
    "density_coverage": {"neighbours": 3, "num_samples": 100},
    "kernel_distance": {"subsets": 2, "subset_size": 50},
    "mmd": {"num_samples": 100},
    "sliced_wasserstein": {"projections": 8, "num_samples": 100},
    "memorisation": {"quantile": 0.1, "num_samples": 100},
}


def test_the_standard_error_of_one_value_is_undefined():
    mean, error = mean_and_error(torch.tensor([0.5], dtype=torch.float64))
    assert mean == 0.5
    assert isinstance(error, Undefined)
    assert error.reason == ONE_SAMPLE
    assert mean_and_error(torch.tensor([0.0, 1.0], dtype=torch.float64)) == (0.5, pytest.approx(0.5))


@pytest.mark.parametrize(("n_train", "n_test"), [(1, 1), (1, 5), (5, 1), (5, 2)])
def test_comparisons_with_a_single_sample_are_undefined_or_numbers(n_train, n_test, tmp_path):
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    data = GivenData("few", TensorSplit(x[:n_train]), TensorSplit(x[-n_test:]), None, None)
    metrics = registry.create("metrics", "default", data=data, cache_dir=str(tmp_path), compare=COMPARE, num_samples=10)
    found = metrics.quality(lambda n, seed: torch.randn(n, 2), 0)
    bad = {key: value for key, value in found.items() if not math.isfinite(value)}
    assert all(isinstance(value, Undefined) and value.reason == TOO_FEW for value in bad.values())
    names = {"fd_data", "kd_data", "mmd2"}
    expected = names if n_train == 1 else set()
    expected = expected | {f"{name}_floor" for name in names} if min(n_train, n_test) == 1 else expected
    assert set(bad) == expected
    rows = {row[0]: row[1:] for row in rows_of(found)}
    assert rows["fd_data floor"][0] == ("–" if bad else rows["fd_data floor"][0])
    assert ("no number" in rows) == bool(bad)


@pytest.mark.filterwarnings("error")
def test_a_run_with_one_test_sample_ends_with_reasons(tmp_path, capsys):
    train(tmp_path, *TINY, "dataset.num_test=1")
    result = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["metrics"]["test_loss"] > 0
    assert result["metrics"]["test_loss_se"] is None
    assert result["reasons"]["test_loss_se"] == ONE_SAMPLE
    assert result["reasons"].keys() == {key for key, value in result["metrics"].items() if value is None}
    assert "nan" not in (tmp_path / "metrics.csv").read_text()
    capsys.readouterr()
    show(RunFolder(tmp_path).result(), tmp_path)
    shown = capsys.readouterr().out
    assert "(n = 1)" in shown
    assert "nan" not in shown
