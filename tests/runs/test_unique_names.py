"""Folder names that are shortened or cleaned differ wherever the overrides differ."""

import re

import pytest

from flowdiff.runs.identity import unique_slug

LONG = [f"group.key_{i}=value" for i in range(9)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([*LONG, "guidance.scale=1"], [*LONG, "guidance.scale=2"]),
        (["class_label=[1,2]"], ["class_label=[1-2]"]),
        (["a=b__c-d"], ["a=b", "c=d"]),
        (["a=b", "c=d"], ["a=b c=d"]),
        (["a=1-"], ["a=1"]),
        (["a=1."], ["a=1"]),
        (["+a=1"], ["a=1"]),
        (["a=_", "b=1"], ["a=", "_b=1"]),
        (["a=-3"], ["a=3"]),
        (["a=ä"], ["a=ö"]),
    ],
)
def test_different_overrides_have_different_folders(one, other):
    names = [unique_slug(overrides) for overrides in (one, other)]
    assert names[0] != names[1]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,90}", name) for name in names)


def test_a_name_that_loses_nothing_has_no_hash():
    overrides = ["num_samples=64", "sampler.num_steps=6", "guidance.scale=-1.5", "start=flow"]
    assert unique_slug(overrides) == "num_samples-64__sampler.num_steps-6__guidance.scale--1.5__start-flow"
    assert unique_slug([]) == ""
