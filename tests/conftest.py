"""One thread for torch, and tests that share a fixture in one process.

The tests' tensors are small, and the processes of pytest-xdist have the cores to themselves.
"""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What a module or a folder sets up for its tests (a trained run, a cluster) is set up once."""
    for item in items:
        scopes = {fixture.scope for found in item._fixtureinfo.name2fixturedefs.values() for fixture in found}
        if "package" in scopes:
            item.add_marker(pytest.mark.xdist_group(str(item.path.parent)))
        elif "module" in scopes:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
