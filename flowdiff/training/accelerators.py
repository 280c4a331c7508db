"""The hardware half of Lightning's Trainer arguments, and whether the network is compiled."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt

from flowdiff.registry import register

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


class Accelerator:
    """`kind` is Lightning's accelerator; devices "auto", a number, or a list of indices; strategy as in Lightning."""

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
