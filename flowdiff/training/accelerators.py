"""The hardware arguments of Lightning's Trainer, and whether the network is compiled."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveInt

from flowdiff.registry import register

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


class Accelerator:
    """What a run computes on.

    Args:
        kind: Lightning's accelerator: auto, cpu or gpu.
        devices: auto, a number of devices, or a list of their indices.
        num_nodes: number of machines, ≥ 1.
        strategy: a Lightning strategy, e.g. auto or ddp.
        precision: 32-true, 16-mixed or bf16-mixed.
        compile: whether torch.compile compiles the network.
        tf32: whether a GPU rounds the factors of float32 products to 10 bits, which is faster. true: in matrix products
            and convolutions; false: in neither; auto: in the convolutions of raw networks, whose gradients bear it,
            and never in a density, whose score would be off by up to 3 %.
        channels_last: whether the weights of convolutions lie in memory with the channels last, which is faster on
            GPUs with tensor cores.
    """

    def __init__(
        self,
        *,
        kind: Literal["auto", "cpu", "gpu"],
        devices: Literal["auto"] | PositiveInt | list[int],
        num_nodes: PositiveInt,
        strategy: str,
        precision: Precision,
        compile: bool,
        tf32: Literal["auto"] | bool,
        channels_last: bool,
    ):
        self.compile = compile
        self.tf32 = tf32
        self.channels_last = channels_last
        self.trainer_arguments: dict[str, Any] = {
            "accelerator": kind,
            "devices": devices,
            "num_nodes": num_nodes,
            "strategy": strategy,
            "precision": precision,
        }

    def set_tf32(self) -> None:
        """Let torch round as `tf32` says, in this process; nothing for auto, which follows from each network."""
        if self.tf32 != "auto":
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self.tf32


# Four sets of defaults for one class: the YAML files differ, the code does not.
for _name in ("auto", "cpu", "gpu", "ddp"):
    register("accelerator", _name)(Accelerator)
