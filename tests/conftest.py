"""One thread for torch: the tests' tensors are small, and two threads that share a busy core wait for each other."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)
