"""Adapters in the files of the library peft: adapter_config.json and adapter_model.safetensors.

A layer of the model has the keys base_model.model.<layer>.lora_A.weight (r, …) and .lora_B.weight (m, r), and a weight
that is trained in full has base_model.model.<weight>, its value W₀ + ΔW. <layer> is the name of the layer in the model
that `flowdiff.load` returns. peft reads the layers that it knows; two kinds it does not know, and flowdiff reads:

    a linear map of a flow, <layer> the name of its weight: peft ignores it
    a layer with a mask: peft would not mask B·A, unless it is merged
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.models.adapters import deltas
from flowdiff.models.adapters.lora import LoRA

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Settings of peft that change the formula of an update, with the values at which it is W₀ + s·B·A.
PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "lora_bias": False, "fan_in_fan_out": False}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in peft's files."""
    return (folder / CONFIG).is_file()


def write(model: nn.Module, adapter: LoRA, folder: Path, base: str) -> None:
    """Write the changes of an adapted model.

    Args:
        model: the model, not merged.
        adapter: what has given it its changes.
        folder: where to; it is made.
        base: what names the base.

    Raises:
        ConfigurationError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigurationError(
            "peft's files need the library peft, which is not installed: pip install 'flowdiff[adapters]'."
        ) from error
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    in_full, unknown = [], []
    for name, module, key, delta in deltas.changed(model):
        layer = name.removesuffix(".weight") if isinstance(module, nn.Linear | nn.Conv2d) else name
        if isinstance(delta, deltas.LowRank):
            A, B = delta.A.detach(), delta.B.detach()
            tensors[f"{PREFIX}{layer}.lora_A.weight"] = A.contiguous()
            tensors[f"{PREFIX}{layer}.lora_B.weight"] = B.view(*B.shape, *[1] * (A.ndim - 2)).contiguous()
            if layer != name:
                ranks[layer] = len(A)
            if layer == name or "mask" in dict(module.named_buffers(recurse=False)):
                unknown.append(layer)
        else:
            tensors[f"{PREFIX}{name}"] = getattr(module, key).detach().contiguous()
            in_full.append(name.rpartition(".")[0])
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha or adapter.rank,  # type: ignore[arg-type]  # peft computes with any number
        use_rslora=adapter.rslora,
        lora_dropout=adapter.dropout,
        target_modules=list(ranks),
        modules_to_save=list(dict.fromkeys(in_full)) or None,
        rank_pattern={layer: rank for layer, rank in ranks.items() if rank != adapter.rank},
        alpha_pattern={layer: r for layer, r in ranks.items() if r != adapter.rank} if adapter.alpha is None else {},
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if unknown:
        log.warning(
            "%d layers are not what peft knows (linear maps of a flow, masked layers), the first is %s: flowdiff reads "
            "all of the file; for peft train with adapter.target of other kinds",
            len(unknown),
            unknown[0],
        )


def changes(folder: Path, model: nn.Module, base: str) -> dict[str, Tensor]:
    """{name of a weight: ΔW} of an adapter in peft's files.

    Args:
        folder: the files.
        model: its base.
        base: what names the base; an adapter that names another base of flowdiff is refused.

    Raises:
        RunError: the files cannot be read, are of another kind of adapter, or of another base.
    """
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:
        raise RunError(
            f"{folder} does not hold an adapter that can be read ({str(error).splitlines()[0]}): it needs {CONFIG} and "
            f"{WEIGHTS}, as peft saves them."
        ) from error
    for key, value in PLAIN.items():
        if config.get(key, value) not in (value, None):
            raise RunError(
                f"{folder} is an adapter with {key}={config[key]}, and only {key}={value} is read: save a plain LoRA."
            )
    named = config.get("base_model_name_or_path")
    if isinstance(named, str) and named.startswith("flowdiff:") and named != base:
        raise RunError(
            f"{folder} is an adapter of {named}, and the base is {base}: give the run that it was trained on."
        )
    parameters = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        layer = key.removeprefix(PREFIX)
        if layer.endswith(".lora_A.weight"):
            layer = layer.removesuffix(".lora_A.weight")
            B = tensors[f"{PREFIX}{layer}.lora_B.weight"]
            update = _scale(config, layer, len(value)) * (B.flatten(1) @ value.flatten(1))
            name = layer if layer in parameters else f"{layer}.weight"
            found[name] = update.view(len(B), *value.shape[1:])
        elif layer.endswith(".lora_embedding_A"):
            layer = layer.removesuffix(".lora_embedding_A")
            B = tensors[f"{PREFIX}{layer}.lora_embedding_B"]
            found[f"{layer}.weight"] = _scale(config, layer, len(value)) * (B @ value).T
        elif layer in parameters and parameters[layer].shape == value.shape:
            found[layer] = value - parameters[layer].detach().to(value)
        elif not layer.endswith((".lora_B.weight", ".lora_embedding_B")):
            found[layer] = value  # `deltas.add` refuses it by its name
    return found


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """What peft multiplies the update of a layer by."""
    alphas = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in alphas.items() if f".{layer}".endswith(f".{key}")), config["lora_alpha"])
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
