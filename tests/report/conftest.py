from pathlib import Path

import pytest
from fake_runs import write_sweep


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    """A folder with a whole sweep: 8 settings and a unet with 3 seeds each, one failed and one unfinished run."""
    root = tmp_path_factory.mktemp("multirun") / "n_flows"
    write_sweep(root)
    return root
