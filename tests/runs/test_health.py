"""health.json: what is written is read again, and what no run writes is refused with a reason."""

import json
import math

import pytest

from flowdiff.runs.collect import health, read_run
from flowdiff.runs.health import Curve, Denoising, Health
from flowdiff.runs.records import Unreadable, read_health
from flowdiff.runs.run_folder import RunFolder
from flowdiff.testing.fake_runs import write_run

DENOISING = Denoising((0.1, 1.0, 10.0), (0.01, 0.2, 9.0), (0.01, 0.25, 0.6), 0.3, True, 0.6, (True, False, True))
HEALTH = Health(
    DENOISING, Curve((0.1, 10.0), (0.5, -2.0)), Curve((1.0, 10.0), (0.5, 0.25)), {"fokker_planck": "it is off"}
)


@pytest.mark.parametrize("found", [HEALTH, Health(), Health(denoising=DENOISING)])
def test_what_is_written_is_read_again(tmp_path, found):
    folder = RunFolder(tmp_path)
    folder.write_health(found)
    assert read_health(folder.health_file) == found
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_what_is_not_finite_is_null_and_counts_as_worse(tmp_path):
    odd = Denoising((0.1, 1.0), (0.01, math.inf), None, 0.3, False, 0.6, (True, True))
    folder = RunFolder(tmp_path)
    folder.write_health(Health(odd, Curve((1.0,), (math.nan,))))
    assert json.loads(folder.health_file.read_text())["denoising"]["model"] == [0.01, None]
    found = read_health(folder.health_file)
    numbers = found.numbers()
    assert numbers["levels_worse_than_means"] == 1
    assert numbers["denoising_worst"].reason == "D is not finite at σ = 1"
    assert numbers["min_eigenvalue"].reason == "it is finite at no noise level"


def test_the_numbers_of_the_table():
    assert Health().numbers() == {}
    numbers = HEALTH.numbers()
    assert numbers.pop("fokker_planck").reason == "it is off"
    assert numbers == {
        **{"denoising_worst": 9.0, "denoising_worst_sigma": 10.0, "denoising_worst_ratio": pytest.approx(30)},
        **{"class_means_error": 0.3, "levels_visited": 2, "levels_worse_than_means": 1},
        **{"min_eigenvalue": -2.0, "min_eigenvalue_sigma": 10.0},
    }
    assert Health(fokker_planck=HEALTH.fokker_planck).numbers() == {"fokker_planck": 0.375}
    # Worse by less than a tenth is not worse, and levels that no sampler visits do not count.
    close = Denoising((1.0, 2.0), (0.32, 0.9), None, 0.3, False, 0.6, (True, False))
    assert close.numbers()["levels_worse_than_means"] == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"denoising": 3}, "its denoising is not a mapping"),
        ({"denoising": {"sigma": [1]}}, "its denoising.model is not a list of numbers"),
        ({"denoising": {"sigma": [1, 2], "model": [1]}}, "its denoising.model has 1 numbers where 2 are expected"),
        ({"eigenvalues": {"sigma": ["a"], "value": [1]}}, "its eigenvalues.sigma is not a list of numbers"),
        ({"fokker_planck": {"sigma": [], "value": []}}, "its fokker_planck.sigma is not a list of numbers"),
        ({"eigenvalues": []}, "its eigenvalues are not a mapping"),
        ({"reasons": []}, "its reasons are not a mapping"),
    ],
)
def test_what_no_run_writes_is_refused(tmp_path, change, reason):
    path = tmp_path / "health.json"
    path.write_text(json.dumps({**HEALTH.to_json(), **change}))
    with pytest.raises(Unreadable, match=f"^{reason}$"):
        read_health(path)


def test_a_report_reads_the_curves_and_names_a_damaged_file(tmp_path):
    good = read_run(write_run(tmp_path / "good", health=HEALTH), "good")
    assert (health(good), good.damage) == (HEALTH, ())
    without = read_run(write_run(tmp_path / "without"), "without")
    assert (health(without), without.damage) == (Health(), ())
    (without.folder / "health.json").write_text("{")
    damaged = read_run(without.folder, "damaged")
    assert health(damaged) == Health()
    assert damaged.damage[0].startswith("health.json (")
