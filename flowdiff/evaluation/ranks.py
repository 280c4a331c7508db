"""Several processes that measure one model: each computes its share, and every sample counts once.

`torchrun --nproc-per-node N sample.py …` starts them and sets the environment by which they find each other. Rank r of
W takes the samples r·n//W … (r + 1)·n//W − 1 of n: nothing is padded, and shares differ by at most one sample. A
process outside `joined` is a group of one, like rank 0 of a training, which measures after the other ranks have ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from flowdiff.errors import RunError
from flowdiff.runs.processes import place

_joined = False


@contextmanager
def joined() -> Iterator[None]:
    """Join the group of the processes that torchrun has started, for the duration of the `with`.

    Raises:
        RunError: the processes do not find each other.
    """
    global _joined
    try:
        dist.init_process_group("gloo")  # numbers are exchanged on the CPU, whatever the device that computes them
    except (ValueError, RuntimeError) as error:  # what torch.distributed raises is a RuntimeError
        reason = " ".join(str(error).split()).rstrip(".")
        raise RunError(
            f"the {place().size} processes that the environment names do not find each other ({reason}): start them by "
            "torchrun, or unset RANK and WORLD_SIZE."
        ) from error
    _joined = True
    try:
        yield
    finally:
        _joined = False
        dist.destroy_process_group()


def rank() -> int:
    """The rank of this process, 0 … W − 1; rank 0 logs and writes files."""
    return dist.get_rank() if _joined else 0


def world_size() -> int:
    """The number of processes, W ≥ 1."""
    return dist.get_world_size() if _joined else 1


def local_device() -> torch.device:
    """The GPU of this process: in a group, the one of its number on its machine; else the current one of torch.

    A training sets the current one, because the config may name a GPU by its index.
    """
    return torch.device("cuda", place().local_rank if _joined else torch.cuda.current_device())


def share(n: int, r: int | None = None) -> range:
    """The positions, among n samples, of the share of rank r; None for this process."""
    r = rank() if r is None else r
    return range(n * r // world_size(), n * (r + 1) // world_size())


def mine(values: Tensor) -> Tensor:
    """This rank's share of values (n, …)."""
    positions = share(len(values))
    return values[positions.start : positions.stop]


def gather(values: Tensor, n: int) -> Tensor:
    """The values (n, …) of all n samples, in order, on every rank, from the values of each rank's share on the CPU."""
    if world_size() == 1:
        return values
    lengths = [len(share(n, r)) for r in range(world_size())]
    padded = values.new_zeros(max(lengths), *values.shape[1:])  # all_gather needs the same shape on every rank
    padded[: len(values)] = values
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded)
    return torch.cat([part[:length] for part, length in zip(received, lengths, strict=True)])


def total(count: int) -> int:
    """The sum of a count over all ranks."""
    summed = torch.tensor(count)
    if world_size() > 1:
        dist.all_reduce(summed)
    return int(summed)
