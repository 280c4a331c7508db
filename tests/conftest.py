"""One thread for torch, whose tensors are small here: pytest-xdist's processes, a file each, share the cores."""

import os

import pytest


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers():
    """One more than there are cores: the tests of launchers wait for other processes much of their time."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items):
    """SLURM's tests wait more than they compute: begun first, they have company until the end."""
    items.sort(key=lambda item: "slurm" not in item.path.parts)


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
