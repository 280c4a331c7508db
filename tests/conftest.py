"""One thread for torch: the tests' tensors are small, and pytest-xdist's processes, a file each, share the cores."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)
