"""Writing an exported folder: weights as safetensors, the config, the results, and the parts that lie elsewhere.

README.md                            the model card
config.yaml run.json result.json …   of the run; paths of the machine are reduced to their names
export.json                          where everything is (flowdiff/runs/exported.py)
model.safetensors                    the averaged weights, an adapter merged into them
config.json, diffusion_pytorch_model.safetensors   of network=unet instead, as diffusers reads it
first_stage/ conditioner/ guidance/  the autoencoder, the text models and the guiding run
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flowdiff import config as configs
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.export.card import card
from flowdiff.models.conditioners.class_and_text import ClassAndText
from flowdiff.models.conditioners.frozen import FrozenText
from flowdiff.models.first_stage.autoencoder_kl import AutoencoderKLFirstStage
from flowdiff.models.networks.unet import UNet
from flowdiff.runs import records
from flowdiff.runs.exported import FORMAT, Exported
from flowdiff.runs.files import disk_errors, write_whole
from flowdiff.runs.identity import label_of_folder
from flowdiff.runs.machine_settings import CACHES, HASHED_AS, INPUTS, get_value, set_value
from flowdiff.runs.run_folder import Label, RunFolder, config_text
from flowdiff.training.assembly import load_merged
from flowdiff.yaml_defaults import defaults, options

MODEL = "model.safetensors"
UNET = "diffusion_pytorch_model.safetensors"  # the name that diffusers looks for, beside its config.json
OF_UNET = "denoiser.network.unet."  # of these weights in the model
RUNS = {"first_stage.run": "first_stage", "guidance.run": "guidance", "guidance.inner.run": "guidance"}


def export(run: str | Path, folder: str | Path, license: str = "unknown") -> Path:
    """Write the model of a run with all it needs into a new folder, which `flowdiff.load` reads as it reads the run.

    The folder appears when it is complete. It can be moved, copied and uploaded, and needs neither the training data
    nor the folders of other runs.

    Args:
        run: the run folder, or a folder that was exported.
        folder: the new folder; it does not exist yet, or is empty.
        license: the licence in the model card: an identifier of the Hugging Face hub, e.g. mit.

    Raises:
        ConfigurationError: the folder is not empty.
        RunError: the run has no weights yet, is a control, or another run that it uses cannot be read.
    """
    out = Path(folder).expanduser()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigurationError(f"{out} is not an empty folder: give a new one, so that no file is replaced.")
    partial = out.with_name(f".{os.getpid()}.{out.name}")
    with disk_errors(out):
        try:
            partial.mkdir(parents=True)
            _write(RunFolder.open(Path(run).expanduser()), partial, license)
            os.replace(partial, out)
        finally:
            with suppress(FileNotFoundError):
                shutil.rmtree(partial)
    return out


def _write(run: RunFolder, out: Path, license: str | None) -> None:
    """Write everything into a folder that exists; license: None for a part of another run, which gets no card."""
    parts, base = load_merged(run.path)
    model, settings = parts.denoiser, configs.of_run(run)
    if settings["adapter"]["name"] == "control":
        raise RunError(f"{run.path} is a control, which is not a model without its base: export the base alone.")
    if settings["plugins"] and license is None:
        raise RunError(f"{run.path} uses plugins and is a part of another run: it cannot be exported with it.")
    plugins = tuple(_copied(Path(path), out) for path in settings["plugins"])
    inside = _parts(model, settings, out)
    weights, words = _weights(model, out)
    label, written = label_of_folder(run), RunFolder(out)
    write_whole(written.config_file, config_text(_travelling(settings, inside)))
    written.write_label(_plain(label))
    _copy_results(run, written, label)
    assert model.levels_file is not None  # it was loaded from a folder
    if model.levels_file.is_file():
        shutil.copyfile(model.levels_file, out / model.levels_file.name)
    Exported(FORMAT, base.run_id, base.weights, model.levels_file.name, weights, words, inside, plugins).write(out)
    if license is not None:
        write_whole(out / "README.md", card(written, model, license))


def _parts(model: ConditionedDenoiser, settings: dict[str, Any], out: Path) -> dict[str, str | list[str]]:
    """Write what lies outside of the run's folder: {dotted key of the config: its place in the new folder}."""
    inside: dict[str, str | list[str]] = {}
    for key, name in RUNS.items():
        if (other := get_value(settings, key)) is not None:
            (out / name).mkdir()
            _write(RunFolder.open(other), out / name, None)
            inside[key] = name
    stage = model.first_stage
    if isinstance(stage, AutoencoderKLFirstStage):
        stage.save(out / "first_stage")
        inside["first_stage.model"] = "first_stage"
    texts = {"conditioner": model.conditioner}
    if isinstance(model.conditioner, ClassAndText):
        texts = {"conditioner.text": model.conditioner.text}
    for key, conditioner in texts.items():
        if isinstance(conditioner, FrozenText):
            places = [f"conditioner/{i}" for i in range(len(conditioner.models))]
            for text_model, place in zip(conditioner.models, places, strict=True):
                text_model.save(out / place)
            given = get_value(settings, f"{key}.model")
            inside[f"{key}.model"] = places if isinstance(given, list) else places[0]
    return inside


def _weights(model: ConditionedDenoiser, out: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Write the tensors of a model: {file: prefix of its names in the model}, and what is not a tensor."""
    state = model.state_dict()
    files = {MODEL: ""}
    if isinstance(model.network, UNet):
        model.network.unet.save_pretrained(out)  # type: ignore[operator]  # diffusers' lazy imports hide its types
        files[UNET] = OF_UNET
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    own = {key: value for key, value in tensors.items() if UNET not in files or not key.startswith(OF_UNET)}
    # Clones, because safetensors refuses tensors that share memory.
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in own.items()}, out / MODEL)
    return files, {key: value for key, value in state.items() if key not in tensors}


def _travelling(settings: Mapping[str, Any], inside: Mapping[str, str | list[str]]) -> dict[str, Any]:
    """The config with the places of the parts, and without the paths of this machine."""
    result = copy.deepcopy(dict(settings))
    result.pop(HASHED_AS, None)  # the id stands in run.json
    result |= {"plugins": [], "adapter": {"name": "none"}, "logger": defaults("logger", "csv")}
    for key in (*INPUTS, *CACHES):
        group, _, name = key.partition(".")
        value = get_value(result, key)
        if key in inside:
            set_value(result, key, inside[key])
        elif key in (*CACHES, "dataset.root") and value is not None and result[group]["name"] in options(group):
            set_value(result, key, defaults(group, result[group]["name"], variables=False).get(name, value))
        elif value is not None:
            set_value(result, key, [_name(v) for v in value] if isinstance(value, list) else _name(value))
    return result


def _name(value: str) -> str:
    """The last part of an absolute path; other values as they are."""
    return os.path.basename(value) if os.path.isabs(os.path.expanduser(value)) else value


def _plain(label: Label) -> Label:
    """How a run is called, with the names of files in place of paths of this machine."""
    name, overrides = label.name, []
    for override in label.overrides:
        key, equals, value = override.partition("=")
        short = f"{key}={_name(value)}" if equals and key.lstrip("+~") in (*INPUTS, *CACHES) else override
        name = name.replace(override, short)
        overrides.append(short)
    return Label(label.run_id, name, label.sweep, tuple(overrides))


def _copy_results(run: RunFolder, written: RunFolder, label: Label) -> None:
    """Copy the result and the pictures of a complete run."""
    for path in (run.samples, run.health_file, run.denoising):
        if path.is_file():
            shutil.copyfile(path, written.path / path.name)
    if run.is_complete:
        plain = _plain(label)
        result = records.json_object(run.result_file) | {"name": plain.name, "overrides": list(plain.overrides)}
        write_whole(written.result_file, json.dumps(result, indent=2, allow_nan=False) + "\n")


def _copied(plugin: Path, out: Path) -> str:
    """Copy a file of plugins into the folder: its path there."""
    (out / "plugins").mkdir(exist_ok=True)
    shutil.copyfile(plugin, out / "plugins" / plugin.name)
    return f"plugins/{plugin.name}"
