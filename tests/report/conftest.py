import pytest

from flowdiff.report import Report, read
from flowdiff.testing.fake_runs import write_run, write_sweep


@pytest.fixture(scope="session")
def swept(tmp_path_factory) -> Report:
    """The report of a sweep: 8 settings and a unet with 3 seeds each, one failed and one unfinished run."""
    return read([write_sweep(tmp_path_factory.mktemp("n_flows"))])


@pytest.fixture
def table_of(tmp_path):
    """A function from {metric: {n_flows: [value of each seed]}} to their table."""

    def write(**metrics):
        seeds = {n: len(values) for by_n in metrics.values() for n, values in by_n.items()}
        for n, seed in ((n, seed) for n, count in seeds.items() for seed in range(count)):
            result = {"metrics": {metric: by_n[n][seed] for metric, by_n in metrics.items()}}
            write_run(tmp_path / f"{n}-{seed}", seed, result=result, flow={"n_flows": n}, picture=False, rows=2)
        return read([tmp_path]).table

    return write
