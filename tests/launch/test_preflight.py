"""All jobs are composed before any is started, and every job that makes no sense is named."""

import pytest

from flowdiff import config
from flowdiff.errors import ConfigurationError
from flowdiff.launch.preflight import compose_all


def compose(overrides):
    composed = config.compose(overrides)
    config.check(composed)
    return composed


def test_good_jobs_come_back_in_order():
    seeds = [3, 1, 2]
    assert [cfg.seed for cfg in compose_all([[f"seed={s}"] for s in seeds], compose)] == seeds


def test_every_error_is_reported_with_the_overrides_that_the_jobs_do_not_share():
    jobs = [["dataset=digits", *job] for job in (["seed=1"], ["scaling=edm"], ["flow.nflows=2"], ["optimizer.lr=-1"])]
    with pytest.raises(ConfigurationError) as error:
        compose_all(jobs, compose)
    head, *lines = str(error.value).splitlines()
    assert head == "3 of 4 jobs make no sense, so none was started:"
    assert [line.partition(": ")[0] for line in lines] == ["  scaling=edm", "  flow.nflows=2", "  optimizer.lr=-1"]
    assert "scaling=score" in lines[0]
    assert "n_flows" in lines[1]
    assert "dataset=digits" not in str(error.value)


def test_the_error_of_a_single_job_is_unchanged():
    with pytest.raises(ConfigurationError, match=r"^network=score_flow scaling=edm "):
        compose_all([["scaling=edm"]], compose)
