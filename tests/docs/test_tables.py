"""The documents that scripts make are what the scripts would make of today's code."""

import importlib
from pathlib import Path

import pytest

from flowdiff import registry

ROOT = Path(__file__).parents[2]
FAMILIES = registry.names("flow")


@pytest.fixture(scope="module")
def families():
    """The module benchmarks/families.py, which belongs to no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("families")


def tables() -> list[list[tuple[str, ...]]]:
    """The tables of docs/flows.md, their headers first and without the line below."""
    found, rows = [], []
    for line in [*(ROOT / "docs" / "flows.md").read_text().splitlines(), ""]:
        if line.startswith("|"):
            rows.append(tuple(cell.strip() for cell in line.strip("|").split(" | ")))
        elif rows:
            found.append([rows[0], *rows[2:]])
            rows = []
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_every_flow_has_its_rows(families, name):
    """What is promised is what the class says, what it costs was measured: if not, run benchmarks/families.py."""
    promised, costs = tables()
    assert promised[0] == families.PROMISES
    assert families.promises(name) in promised[1:]
    assert costs[0] == families.COSTS
    (row,) = [row for row in costs[1:] if row[0] == f"`{name}`"]
    assert len(row) == len(families.COSTS)
    assert all(cell.endswith((" ms", " ×")) for cell in row[2:])


def test_no_flow_is_left_that_is_gone():
    for table in tables():
        assert [row[0].strip("`") for row in table[1:]] == FAMILIES
