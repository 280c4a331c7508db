"""The hardware arguments of Lightning's Trainer, and whether the network is compiled."""

from __future__ import annotations

from typing import Any, Literal

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
    ):
        self.compile = compile
        self.trainer_arguments: dict[str, Any] = {
            "accelerator": kind,
            "devices": devices,
            "num_nodes": num_nodes,
            "strategy": strategy,
            "precision": precision,
        }


# Four sets of defaults for one class: the YAML files differ, the code does not.
for _name in ("auto", "cpu", "gpu", "ddp"):
    register("accelerator", _name)(Accelerator)
