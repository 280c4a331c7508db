"""One thread for torch, whose tensors are small here: pytest-xdist's processes, a file each, share the cores."""

import os

import pytest


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers():
    """One more than there are cores: the tests of launchers wait for other processes much of their time."""
    return (os.cpu_count() or 1) + 1


# Files that take longest, with SLURM's, which wait more than they compute: begun first, none of them ends alone.
LONG = ("slurm", "flows/test_laws.py", "training/test_run.py", "training/test_text.py", "evaluation/test_evaluate.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not any(part in item.path.as_posix() for part in LONG))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def at_step(monkeypatch):
    """A function that lets something happen before a training step, as long as the patch holds."""
    from flowdiff.training.engine import Engine

    original = Engine.training_step

    def at(step, happen, patch=monkeypatch):
        def training_step(self, batch, batch_idx):
            if batch_idx == step:
                happen()
            return original(self, batch, batch_idx)

        patch.setattr(Engine, "training_step", training_step)

    return at


@pytest.fixture(autouse=True)
def _forget_plugins():
    """What a test's plugins have registered is gone with it: the next file of the same process knows only ours."""
    yield
    from hydra.core.config_store import ConfigStore

    from flowdiff import registry

    for group, known in registry._components.items():
        for name in [name for name, made in known.items() if made.__module__.startswith("flowdiff_plugin_")]:
            del known[name]
            ConfigStore.instance().repo.get(group, {}).pop(f"{name}.yaml", None)
