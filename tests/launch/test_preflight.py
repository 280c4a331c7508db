"""All jobs are composed before any is started, and every job that makes no sense is named."""

import pytest

from flowdiff.errors import ConfigurationError
from flowdiff.launch.preflight import compose_all


def compose(overrides):
    if "seed=0" in overrides:
        raise ConfigurationError(f"{overrides[-1]} is wrong.")
    return overrides


def test_good_jobs_come_back_in_order():
    jobs = [["seed=3"], ["seed=1"], ["seed=2"]]
    assert compose_all(jobs, compose) == jobs


def test_every_error_is_reported_with_the_overrides_that_the_jobs_do_not_share():
    jobs = [["dataset=digits", *job] for job in (["seed=1"], ["seed=0", "a=1"], ["seed=0", "b=2"])]
    expected = (
        "2 of 3 jobs make no sense, so none was started:\n  seed=0 a=1: a=1 is wrong.\n  seed=0 b=2: b=2 is wrong."
    )
    with pytest.raises(ConfigurationError) as error:
        compose_all(jobs, compose)
    assert str(error.value) == expected


def test_the_error_of_a_single_job_is_unchanged():
    with pytest.raises(ConfigurationError, match=r"^seed=0 is wrong\.$"):
        compose_all([["seed=0"]], compose)
