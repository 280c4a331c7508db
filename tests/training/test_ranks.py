"""Several processes of a run, on GPUs that this machine need not have: who writes, and which device each one takes."""

import pytest
import torch
from runs import TINY, settings

from flowdiff.evaluation import ranks
from flowdiff.models.conditioners import Conditioner
from flowdiff.models.first_stage.identity import IdentityFirstStage
from flowdiff.runs.run_folder import Label, RunFolder
from flowdiff.training import run as training
from flowdiff.training.run import check_trainer

SECOND_OF_TWO = {"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train"}
SRUN |= {"SLURM_NTASKS_PER_NODE": "2"}  # Lightning asks for it
LABEL = Label("id", "name", None, ())
TWO = ["accelerator=ddp", "accelerator.devices=2"]


@pytest.fixture
def given(monkeypatch):
    """Sets the variables of a launcher, and removes those of the others."""

    def set_only(variables):
        for key in ("RANK", "GROUP_RANK", "TORCHELASTIC_RUN_ID", *SECOND_OF_TWO, *SRUN):
            monkeypatch.delenv(key, raising=False)
        for key, value in variables.items():
            monkeypatch.setenv(key, value)

    return set_only


@pytest.fixture
def four_gpus(monkeypatch):
    """What Lightning asks to learn which GPUs there are; nothing is computed on them."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)


def test_only_the_first_process_writes_the_curves_and_the_config(tmp_path, given, monkeypatch):
    given(SECOND_OF_TWO)
    folder = RunFolder(tmp_path / "run")
    config = settings(*TINY, *TWO, "accelerator.kind=cpu")
    run = training.prepare(config, folder, LABEL)
    training._begin(run, config, LABEL)
    assert not folder.path.exists()
    folder.path.mkdir()
    rows = "step,train_loss\n0,1.0\n7,0.5\n"  # the first process may have logged them, or drops the later ones itself
    folder.metrics.write_text(rows)
    monkeypatch.setattr("lightning.pytorch.Trainer.fit", lambda *_, **__: None)
    training.fit(run, [], [])
    assert folder.metrics.read_text() == rows


@pytest.mark.parametrize(
    ("variables", "overrides", "index"),
    [
        ({}, ["accelerator=gpu"], 0),
        ({}, ["accelerator=gpu", "accelerator.devices=[2]"], 2),
        ({}, ["accelerator=ddp", "accelerator.devices=[3,1]"], 3),
        (SECOND_OF_TWO, ["accelerator=ddp", "accelerator.devices=[3,1]"], 1),
        (SRUN, TWO, 1),
    ],
)
def test_a_process_prepares_its_run_on_the_gpu_that_it_trains_on(
    tmp_path, given, four_gpus, monkeypatch, variables, overrides, index
):
    given(variables)
    gpu = torch.device("cuda", index)
    taken, moved = [], []
    config = settings(*TINY, *overrides)
    assert check_trainer(config, RunFolder(tmp_path / "run"))[1] == gpu
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    for part in (IdentityFirstStage, Conditioner):  # what may encode the data
        monkeypatch.setattr(part, "to", lambda self, device: moved.append(device))
    training.prepare(config, RunFolder(tmp_path / "run"), LABEL)
    assert (taken, moved) == ([gpu], [gpu, gpu])
    monkeypatch.setattr("torch.cuda.current_device", lambda: index)
    assert ranks.local_device() == gpu  # where features are computed


def test_a_process_of_a_group_takes_the_gpu_of_its_number(given, monkeypatch):
    given({**SECOND_OF_TWO, "RANK": "1"})
    monkeypatch.setattr(ranks, "_joined", True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    assert ranks.local_device() == torch.device("cuda", 1)


def test_no_evaluation_sees_more_samples_at_a_time_than_its_batch_size(tmp_path, monkeypatch):
    from flowdiff.diffusion.denoiser import Denoiser
    from flowdiff.models.networks.score_flow import ScoreFlow

    sizes = set()

    def counted(method):
        def call(self, x, *arguments, **more):
            sizes.add(len(x))
            return method(self, x, *arguments, **more)

        return call

    monkeypatch.setattr(Denoiser, "forward", counted(Denoiser.forward))
    for name in ("encode", "decode"):
        monkeypatch.setattr(ScoreFlow, name, counted(getattr(ScoreFlow, name)))
    monkeypatch.setattr(training, "draw_trajectory", lambda *_: None)  # it shows the steps of one batch
    config = settings(*TINY, "dataset.batch_size=16", "metrics.batch_size=20")
    folder = RunFolder(tmp_path / "run")
    training.train(config, folder, name="name", run_id="id", sweep=None, overrides=())
    assert folder.interpolation.is_file()
    assert max(sizes) == 20
