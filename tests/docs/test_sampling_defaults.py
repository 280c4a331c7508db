"""The benchmark that the samplers' defaults come from compares at equal numbers of network evaluations."""

import importlib
from pathlib import Path

import pytest
import torch

from flowdiff import registry
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls
from flowdiff.testing.models import model_of

ROOT = Path(__file__).parents[2]
MIXTURE = oracles.two_by_two()


@pytest.fixture(scope="module")
def benchmark():
    """The module benchmarks/sampling_defaults.py, which belongs to no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("sampling_defaults")


@pytest.mark.parametrize("evaluations", [1, 18, 36, 72])
def test_steps_take_the_evaluations_that_were_asked_for(benchmark, evaluations):
    for name in set(benchmark.SAMPLERS) - {"adaptive"}:
        steps = benchmark.steps_of(name, evaluations)
        counted, grid = CountCalls(MIXTURE), registry.create("schedule", "karras")(steps)
        registry.create("sampler", name, num_steps=steps)(counted, torch.ones(1, 2), grid, None, torch.Generator())
        # A sampler of two evaluations per step and one in the last takes an odd number.
        assert evaluations - 1 <= counted.calls <= evaluations, name
        assert counted.calls == evaluations or name in benchmark.TWO_PER_STEP


def test_the_tolerance_of_adaptive_steps_is_found(benchmark):
    model = model_of(MIXTURE.network, shape=(2,))
    options = {"schedule": model.sampling.schedule, "clip": False, "batch_size": 64}
    for evaluations in (18, 72):
        sampler, before = benchmark.adaptive(model, evaluations, 0, **options), model.evaluations
        model.sample(64, seed=1, sampler=sampler, **options)
        # The search sees 32 other samples, and halves the tolerance's logarithm 8 times.
        assert (model.evaluations - before) / 64 == pytest.approx(evaluations, rel=0.2)


def test_a_command_given_again_measures_only_what_is_missing(benchmark, tmp_path):
    row = {"run": "a", "sampler": "heun", "evaluations": 18, "clip": True, "seed": 0, "n": 10}
    file = tmp_path / "rows.jsonl"
    assert benchmark.rows_of(file) == []
    file.write_text('{"run": "a", "sampler": "heun", "evaluations": 18, "clip": true, "seed": 0, "n": 10}\n{"run": "b')
    assert benchmark.rows_of(file) == [row]
    numbers = {"what": "unet", "data": "digits", "nfe": 17.0, "fd": None, "precision": None, "recall": None}
    rows = [row | numbers | {"not_finite": 3}, {**row, "seed": 1} | numbers | {"fd": 2.0, "not_finite": 0}]
    assert [str(cell) for cell in benchmark.table(rows).columns[-1].cells] == ["3 of 20"]
