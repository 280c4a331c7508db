"""Lightning's Trainer of a run: its own arguments from the config, and what every run needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flowdiff.errors import ConfigurationError
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.assembly import RunParts
from flowdiff.training.checkpoint import ResumableCheckpoint

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}  # they write <run folder>/fit-profile*.txt
# Lightning's advice that does not apply: our loaders index whole batches in memory, srun on the PATH is not a job, and
# the Fréchet distance is measured on rank 0 only. The fourth is lightning 2.6 calling torch >= 2.15.
ADVICE = (
    ".*does not have many workers.*",
    ".*The `srun` command is available.*",
    ".*GPU available but not used.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*recommended to use `self.log\\('fd_.*sync_dist=True.*",
)


def make_trainer(
    parts: RunParts, folder: RunFolder, loggers: Sequence[Logger], callbacks: Sequence[Callback]
) -> Trainer:
    """The Trainer of a run; ConfigurationError where Lightning refuses its arguments."""
    arguments = dict(parts.trainer)
    decay = parts.optimizer.ema_decay
    average = [WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))] if decay else []
    if arguments["profiler"] in PROFILERS:  # given by name, Lightning's profiler would write to a logger we silence
        arguments["profiler"] = PROFILERS[arguments["profiler"]](folder.path, "profile")
    every = arguments["val_check_interval"]
    saving = ResumableCheckpoint(folder.checkpoint, every or arguments["max_steps"], resume_command(folder))
    if every is None:
        arguments["limit_val_batches"] = 0
        del arguments["val_check_interval"]
    elif isinstance(every, int):
        arguments["val_check_interval"] = every * arguments["accumulate_grad_batches"]  # Lightning counts batches
    try:
        return Trainer(
            **parts.accelerator.trainer_arguments,
            **arguments,
            logger=list(loggers),
            callbacks=[*callbacks, *average, saving],
            default_root_dir=folder.path,
            check_val_every_n_epoch=None,  # the training stream is endless: validation counts steps
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data module gives every rank its own part
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,  # we requeue
            inference_mode=False,  # a score is a gradient, also in validation
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigurationError(f"the trainer refuses this configuration: {first}.") from error


def resume_command(folder: RunFolder) -> str:
    """The command that continues a run."""
    return f"python train.py resume={folder.path}"


def device_name(trainer: Trainer) -> str:
    """What the run computes on."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence Lightning's advice that does not apply."""
    with warnings.catch_warnings():
        for message in ADVICE:
            warnings.filterwarnings("ignore", message)
        yield
