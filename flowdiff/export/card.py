"""The model card of an exported folder: README.md with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.models.networks.unet import TIMESTEPS_PER_UNIT, UNet
from flowdiff.runs.identity import label_of_folder
from flowdiff.runs.result_table import rows_of
from flowdiff.runs.run_folder import RunFolder
from flowdiff.runs.undefined import read
from flowdiff.shapes import times


def card(folder: RunFolder, model: ConditionedDenoiser, license: str) -> str:
    """README.md of an exported folder.

    Args:
        folder: the folder, with everything else in it.
        model: its model.
        license: an identifier of a licence on the hub.
    """
    config, label = folder.config(), label_of_folder(folder)
    result: dict[str, Any] = {**folder.result()} if folder.is_complete else {}
    name, dataset = label.name, config["dataset"]["name"]
    metadata = yaml.safe_dump(_metadata(name, dataset, result, model, license), sort_keys=False, allow_unicode=True)
    kind = config["network"]["name"] + (f" of flow={config['flow']['name']}" if "flow" in config else "")
    about = f"A {kind}, trained on {dataset} (samples of shape {times(model.first_stage.latent_shape)}"
    if not model.first_stage.is_identity:
        about += f", latents of first_stage={config['first_stage']['name']}"
    about += ")"
    if result:
        about += f" for {result['steps']:,} steps; {result['parameters']:,} parameters"
    parts = [f"---\n{metadata}---\n\n# {name}\n\n{about}. Made with flowdiff."]
    if folder.samples.is_file():
        parts.append("![Samples](samples.png)")
    parts.append(_use(model))
    parts.append(_measured(result))
    command = shlex.join(["python", "train.py", *label.overrides])
    versions = ", ".join(f"{package} {version}" for package, version in (result.get("versions") or {}).items())
    made = f"## Trained by\n\n```bash\n{command}\n```\n\nRun id {label.run_id}."
    if versions:
        made += f" On {result.get('device', 'an unknown device')} in {result['seconds']['train']:.0f} s, by {versions}."
    parts.append(made)
    parts.append(f"## Licence\n\n{license}")
    return "\n\n".join(parts) + "\n"


def _metadata(
    name: str, dataset: str, result: Mapping[str, Any], model: ConditionedDenoiser, license: str
) -> dict[str, Any]:
    """What the hub reads at the top of a card: https://huggingface.co/docs/hub/model-cards."""
    task = "text-to-image" if model.conditioner.reads_text else "unconditional-image-generation"
    library = "diffusers" if isinstance(model.network, UNet) else "flowdiff"
    found: dict[str, Any] = {
        "license": license,
        "library_name": library,
        "tags": ["flowdiff", "density" if model.is_density else "diffusion"],
        "pipeline_tag": task,
    }
    numbers = [
        {"type": key, "name": key, "value": value}
        for key, value in (result.get("metrics") or {}).items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    if numbers:
        about = {"task": {"type": task}, "dataset": {"name": dataset, "type": dataset}, "metrics": numbers}
        found["model-index"] = [{"name": name, "results": [about]}]
    return found


def _use(model: ConditionedDenoiser) -> str:
    condition = ""
    if model.conditioner.reads_text:
        condition = f", prompt={model.conditioner.examples()[0]!r}"
    elif model.num_classes is not None:
        condition = ", label=0"
    sampled = f"\nsamples = flowdiff.sample(model, 16{condition})" if model.can_sample else ""
    text = f"""## Use

```python
import flowdiff

model = flowdiff.load("<this folder>")  # or "hub:<user>/<name>"{sampled}
```"""
    if isinstance(model.network, UNet):
        kind = type(model.network.unet).__name__
        text += f"""

The network itself is a `{kind}` of diffusers, F in D = c_skip·x + c_out·F(c_in·x, t) at the timestep
t = {TIMESTEPS_PER_UNIT:g}·asinh(c_noise), with c_skip, c_out, c_in and c_noise of `scaling` in config.yaml and
sigma_data = {float(model.sigma_data):.6g}:

```python
from diffusers import {kind}

unet = {kind}.from_pretrained("<this folder>")
```"""
    return text


def _measured(result: Mapping[str, Any]) -> str:
    """The metrics of the run as a table."""
    rows = rows_of(read(result.get("metrics") or {}, result.get("reasons") or {}))
    if not rows:
        return "## Measured\n\nNothing: the run was exported before it was complete."
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(["## Measured\n\n| metric | value | about |\n| --- | ---: | --- |", *(f"| {t} |" for t in lines)])
