"""Several processes that measure one model: each computes its share, and every sample counts once.

They are started by `torchrun --nproc-per-node N sample.py …` and find each other by the environment it sets. Of n
samples rank r of W takes r·n//W … (r + 1)·n//W − 1: nothing is padded, shares differ by one sample at most. One process
alone is a group of one, and so is the rank of a training that measures while the others have left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

_joined = False


@contextmanager
def joined() -> Iterator[None]:
    """The group of the processes that torchrun has started, as long as the `with` lasts."""
    global _joined
    dist.init_process_group("gloo")  # numbers travel on the CPU, whatever computes them
    _joined = True
    try:
        yield
    finally:
        _joined = False
        dist.destroy_process_group()


def rank() -> int:
    """0 … W − 1; 0 is the one that speaks and writes."""
    return dist.get_rank() if _joined else 0


def world_size() -> int:
    """How many processes there are, W ≥ 1."""
    return dist.get_world_size() if _joined else 1


def local_device() -> torch.device:
    """The GPU of this process, of those of its machine."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def share(n: int, of: int | None = None) -> range:
    """Which of n samples are this rank's, or rank `of`'s."""
    r = rank() if of is None else of
    return range(n * r // world_size(), n * (r + 1) // world_size())


def mine(values: Tensor) -> Tensor:
    """This rank's share of values (n, …)."""
    share_ = share(len(values))
    return values[share_.start : share_.stop]


def gathered(values: Tensor, n: int) -> Tensor:
    """The values (n, …) of all n samples on every rank, in order; values: those of this rank's share, on the CPU."""
    if world_size() == 1:
        return values
    lengths = [len(share(n, of)) for of in range(world_size())]
    whole = values.new_zeros(max(lengths), *values.shape[1:])  # what is sent has to be of one shape
    whole[: len(values)] = values
    received = [torch.empty_like(whole) for _ in lengths]
    dist.all_gather(received, whole)
    return torch.cat([part[:length] for part, length in zip(received, lengths, strict=True)])


def total(count: int) -> int:
    """The sum over all ranks."""
    found = torch.tensor(count)
    if world_size() > 1:
        dist.all_reduce(found)
    return int(found)
