"""MkDocs hook: a page for each config group, made from the registry, the docstrings and the YAML files in conf/.

Nothing on these pages is written by hand, so nothing on them can be out of date: a component that is registered has a
section, and a setting that its constructor takes has a row.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import griffe
import yaml
from docstrings import as_markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from flowdiff import registry
from flowdiff.yaml_defaults import CONF, defaults

# What each group decides: the first sentence of its page, and its row in the overview.
GROUPS = {
    "dataset": "The data, with their batch size and loader workers. `checkerboard`, `swiss_roll` and unlabelled images "
    "need `conditioner=none`.",
    "network": "What the denoiser is made of: a score flow or a raw network. `classifier` trains a classifier of "
    "noised samples for `guidance=classifier`, `vae` an autoencoder for `first_stage=vae`, `clip` a model of "
    "images and captions for `conditioner=clip`.",
    "flow": "The family of the score flow; `flow.n_flows` is its number of blocks.",
    "activation": "The bijection between the layers of `linear_activation`, and the nonlinearity inside every net.",
    "whitening": "The exact first layer of a score flow, which knows σ in closed form.",
    "scaling": "How the output of a network becomes a denoiser; a score flow takes `score`.",
    "loss": "The training objective. `cross_entropy` is for `network=classifier`, `elbo` for `network=vae`, "
    "`contrastive` for `network=clip`. A loss with a setting `run` learns from that run.",
    "weighting": "w(σ) of `loss=denoising`, `loss=hybrid` and `loss=nll`, which takes `unit`, `sigma` and "
    "`noise_share` only.",
    "sigma_sampler": "The noise levels seen in training.",
    "conditioner": "What the model is conditioned on, the class or the caption, and how often training drops it. "
    "`one_hot` is for `network=classifier`, `word_ids` for `network=clip`.",
    "schedule": "The noise levels of sampling, from σ_max down to 0. `optimal` measures where a run's own trajectories "
    "bend.",
    "sampler": "The steps from one noise level of the schedule to the next.",
    "guidance": "A denoiser that wraps the denoiser and leads samples away from a model that knows less. Each of "
    "these takes `interval`, `rescale` and `dynamic_threshold`; `embedded` sets the scale that a distilled model "
    "reads.",
    "measurement": "What `sample.py` sees of a test sample, y = A·x0 + σ_y·noise, to draw the sample again from it.",
    "posterior": "How `sample.py` draws a sample given its measurement. `dps`, `pigdm`, `mmps`, `replacement` and "
    "`repaint` steer the denoiser; `hmc` and `mala` draw exactly from a density.",
    "optimizer": "The optimizer, with warm-up, a cosine or constant learning rate, and the average of the weights.",
    "metrics": "What is measured, when, and on how many samples.",
    "comparison": "How generated samples are compared with test samples: the lines of `metrics.compare`.",
    "accelerator": "Devices, precision and `torch.compile`.",
    "logger": "Where curves and pictures go besides `metrics.csv`, which is always written. W&B is offline "
    "without a key.",
    "first_stage": "The space the model works in: the space of the data, or the latents of an autoencoder, which is "
    "frozen or (`vae`) trained together with the model.",
    "adapter": "What is trained of the model of another run, `adapter.run`, which stays frozen.",
    "hint": "A picture made of an image, which a model is trained to obey: from scratch, `hint=edges`, or as a control "
    "of another run, `adapter=control adapter.hint=edges`.",
}
ONLY_SAMPLING = ("measurement", "posterior")
# Hydra's own groups and the debugging presets, which are YAML alone.
PLAIN_GROUPS = {
    "hydra/launcher": "Where the runs of a sweep go: this machine or a SLURM cluster.",
    "hydra/sweeper": "Which runs a `-m` command makes: every combination, or what a search chooses.",
    "debug": "Presets for finding a fault; their runs go to `outputs/debug/`.",
}


OVERVIEW = """# Components

Every part of a run is an option of a config group: `python train.py <group>=<option> <group>.<key>=<value>`.
`python train.py --help` lists the options, and `python train.py --cfg job` prints the whole configuration. A typo, a
wrong type or a combination that makes no sense ends as one sentence before anything is trained.

| group | options | what it decides |
| --- | --- | --- |
{rows}

`trainer.*` are the arguments of Lightning's `Trainer` (`trainer.max_steps`, `trainer.gradient_clip_val`, …).

The pages of this section are made from the registry, the docstrings and the YAML files when the site is built.
"""


@dataclass(frozen=True)
class Setting:
    """A row of a settings table."""

    key: str
    default: str
    allowed: str
    meaning: str


@dataclass
class Described:
    """The parts of a docstring, as Markdown."""

    text: str = ""
    args: dict[str, str] = field(default_factory=dict)
    raises: list[str] = field(default_factory=list)
    source: str = ""
    example: str = ""


def on_config(config: MkDocsConfig) -> None:
    """Add the pages to the section Components of the navigation."""
    (pages,) = [entry["Components"] for entry in config.nav if "Components" in entry]
    pages[1:1] = [{group: page_of(group)} for group in (*GROUPS, *PLAIN_GROUPS)]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Write the pages."""
    made = {"components/index.md": overview()}
    made |= {page_of(group): group_page(group) for group in GROUPS}
    made |= {page_of(group): plain_page(group) for group in PLAIN_GROUPS}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))


def page_of(group: str) -> str:
    """The address of a group's page below docs/."""
    return f"components/{group.split('/')[-1]}.md"


def overview() -> str:
    """The page of all groups."""
    rows = [
        f"| [`{group}`]({page_of(group).split('/')[1]}) | {', '.join(f'`{o}`' for o in choices(group))} | {what} |"
        for group, what in (GROUPS | PLAIN_GROUPS).items()
    ]
    return OVERVIEW.format(rows="\n".join(rows))


def choices(group: str) -> list[str]:
    """The options of a group, the default of the configuration first."""
    if group in registry.NESTED_MODULES:
        return registry.names(group)
    first = default_option(group)
    names = [path.stem for path in (CONF / group).glob("*.yaml")]
    return sorted(names, key=lambda name: (name != first, name))


def default_option(group: str) -> str | None:
    """The option that a command takes, directly or through network=score_flow and loss=denoising."""
    wanted = "default_flow" if group == "flow" else group
    brought = {"weighting": "loss/denoising", "activation": "flow/realnvp"}
    brought |= {"whitening": "flow/realnvp", "sampler": "network/score_flow"}
    brought |= {"measurement": "sample", "posterior": "measurement/inpaint"}
    file = CONF / f"{brought.get(group, 'config')}.yaml"
    for entry in yaml.safe_load(file.read_text())["defaults"]:
        if isinstance(entry, dict):
            for key, option in entry.items():
                if key.split()[-1].lstrip("/").partition("@")[0] == wanted:
                    return option
    return None


def group_page(group: str) -> str:
    """The page of one config group."""
    lines = [f"# {group}\n", f"{GROUPS[group]}\n"]
    names = choices(group)
    if group in registry.NESTED_MODULES:
        lines.append(
            "Each is a line of `metrics.compare` with its settings, e.g. `+metrics.compare.mmd={num_samples: 500}`.\n"
        )
    else:
        first = default_option(group)
        if first:
            program = "sample.py" if group in ONLY_SAMPLING else "train.py"
            lines.append(f"`python {program}` takes `{group}={first}`.\n")
    shown: dict[type, str] = {}
    for name in names:
        node = {} if group in registry.NESTED_MODULES else defaults(group, name)
        component = registry.resolve(group, str(node.get("name", name)))
        lines += [f"## {name}\n"]
        if component in shown:
            lines += variant(group, name, shown[component])
        else:
            lines += section(group, name, component, node)
            shown[component] = name
    return "\n".join(lines)


def section(group: str, name: str, component: type, node: Mapping[str, Any]) -> Iterator[str]:
    """A component: what it is, its equation, its settings, what it refuses and where it comes from."""
    described = describe(component)
    yield f"{described.text}\n"
    brings = [f"`{key}={value}`" for key, value in brought(group, name)]
    if brings:
        yield f"Brings {', '.join(brings)} with it, unless the command line says otherwise.\n"
    yield from table(settings(group, name, component, node, described.args))
    needs = [f"{need.reason}; {need.remedy}." for need in registry.requirements(component)]
    refused = [*needs, *described.raises]
    if refused:
        yield "\n".join(["Refused:\n", *(f"- {' '.join(why.split())}" for why in refused)]) + "\n"
    if described.example:
        yield f"{described.example}\n"
    if described.source:
        yield f"*Source:* {described.source}\n"
    yield f"`{component.__module__}.{component.__qualname__}`\n"


def variant(group: str, name: str, first: str) -> Iterator[str]:
    """An option that is another one with other settings."""
    yield f"{header(group, name)}\n"
    mine, theirs = defaults(group, name), defaults(group, first)
    rows = [
        Setting(key, inline(value), inline(theirs.get(key)), "")
        for key, value in mine.items()
        if key != "name" and value != theirs.get(key)
    ]
    yield f"As [`{first}`](#{first}), but for:\n"
    yield f"| setting | `{name}` | `{first}` |\n| --- | --- | --- |"
    for row in rows:
        yield f"| `{row.key}` | {code(row.default)} | {code(row.allowed)} |"
    yield ""


def plain_page(group: str) -> str:
    """The page of a group that has no class: its YAML files."""
    lines = [f"# {group}\n", f"{PLAIN_GROUPS[group]}\n"]
    for name in choices(group):
        file = CONF / group / f"{name}.yaml"
        kept = [line for line in file.read_text().splitlines() if not line.startswith(("#", "_target_", "_convert_"))]
        lines += [f"## {name}\n", f"{header(group, name)}\n", "```yaml", *kept, "```\n"]
    return "\n".join(lines)


def describe(component: type) -> Described:
    """The parts of a component's docstring, and of its constructor's where that has one of its own.

    Arguments that it shares with others are described by its base classes.
    """
    said = Described()
    for base in reversed(component.__mro__[1:-1]):
        said.args |= described_arguments(base)
    paragraphs: list[str] = []
    own_init = component.__dict__.get("__init__")
    for text in (inspect.getdoc(component), inspect.getdoc(own_init) if own_init and own_init.__doc__ else None):
        for part in parsed(text):
            if part.kind.value == "parameters":
                said.args |= {arg.name: arg.description for arg in part.value}
            elif part.kind.value == "raises":
                said.raises += [error.description for error in part.value]
            elif part.kind.value == "admonition" and part.value.kind == "source":
                said.source = f"{part.title} {part.value.contents}"
            elif part.kind.value == "admonition":
                said.example = f"**{part.title}**\n\n{part.value.contents}"
            elif part.kind.value == "examples":
                said.example = "\n".join(f"```python\n{text}\n```" for _, text in part.value)
            else:
                paragraphs.append(str(part.value))
    text = "\n\n".join(paragraphs)
    text, found, source = text.partition("\n\nSource: ")
    if found:
        said.source = source.strip()
    said.text = text
    return said


def parsed(docstring: str | None) -> list[griffe.DocstringSection]:
    """The sections of a docstring, as Markdown."""
    return griffe.Docstring(as_markdown(docstring or ""), parser="google", parser_options={"warnings": False}).parse()


def described_arguments(component: type) -> dict[str, str]:
    """What the docstring of a class, without that of its bases, says of the constructor's arguments."""
    sections = parsed(inspect.cleandoc(component.__dict__.get("__doc__") or ""))
    return {arg.name: arg.description for part in sections if part.kind.value == "parameters" for arg in part.value}


def settings(
    group: str, name: str, component: type, node: Mapping[str, Any], args: Mapping[str, str]
) -> Iterator[Setting]:
    """The rows of a component's table: hyperparameters in the order of the YAML file, nested ones below their key."""
    comments = yaml_comments(group, name)
    parameters = registry.hyperparameters(component)
    keys = [key for key in node if key in parameters]
    for key in [*keys, *(key for key in parameters if key not in keys)]:
        parameter = parameters[key]
        default = node.get(key, "" if parameter.default is parameter.empty else parameter.default)
        fields = nested_fields(parameter.annotation)
        if fields and isinstance(default, Mapping):
            for inner, hint in fields.items():
                meaning = comments.get(f"{key}.{inner}", args.get(key, ""))
                yield Setting(f"{key}.{inner}", inline(default.get(inner)), allowed(hint), meaning)
            continue
        yield Setting(key, inline(default), allowed(parameter.annotation), args.get(key) or comments.get(key, ""))


def table(rows: Iterator[Setting]) -> Iterator[str]:
    """The Markdown of a settings table."""
    rows = list(rows)
    if not rows:
        yield "It has no settings.\n"
        return
    yield "| setting | default | allowed | meaning |\n| --- | --- | --- | --- |"
    for row in rows:
        meaning = re.sub(r"(?<!\\)\|", r"\\|", " ".join(row.meaning.split()))
        meaning = re.sub(r"(?<!`)\bNone\b", "`null`", meaning)  # as YAML and the command line write it
        yield f"| `{row.key}` | {code(row.default)} | {row.allowed} | {meaning} |"
    yield ""


def nested_fields(hint: Any) -> dict[str, Any]:
    """The fields of a setting that is itself a record of settings."""
    if not isinstance(hint, type) or hint.__module__ == "builtins" or not typing.get_type_hints(hint):
        return {}
    return typing.get_type_hints(hint, include_extras=True)


def allowed(hint: Any) -> str:
    """An annotation in words: PositiveInt is `int > 0`, Literal["a", "b"] is `a`, `b`."""
    if hint is None or hint is type(None):
        return "`null`"
    if hint is Any:
        return "any"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(code(inline(value)) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(allowed(argument) for argument in arguments)
    if origin is typing.Annotated:
        return " ".join(filter(None, [allowed(arguments[0]), limits(arguments[1:])]))
    if origin is not None:
        if origin is dict:
            return "mapping"
        inner = ", ".join(allowed(argument) for argument in arguments if argument is not Ellipsis)
        kind = {list: "list", tuple: "list"}.get(origin, getattr(origin, "__name__", str(origin)).lower())
        return f"{kind} of {inner}" if inner else kind
    return getattr(hint, "__name__", str(hint))


def limits(metadata: tuple[Any, ...]) -> str:
    """The bounds in an annotation, written as inequalities."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found: dict[str, Any] = {}
    for item in metadata:
        for part in [item, *getattr(item, "metadata", [])]:
            for name in signs:
                bound = getattr(part, name, None)
                if bound is not None:
                    found[name] = bound
    return ", ".join(f"{sign} {found[name]:g}" for name, sign in signs.items() if name in found).replace("<", "&lt;")


def inline(value: Any) -> str:
    """A value as YAML on one line."""
    if value == "":
        return ""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def code(text: str) -> str:
    """Text as code in a table."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def header(group: str, name: str) -> str:
    """The comment at the top of a YAML file."""
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    comments = [line.lstrip("# ") for line in lines[:5] if line.startswith("# ")]
    return " ".join(line for line in comments if not line.startswith("@package"))


def brought(group: str, name: str) -> list[tuple[str, str]]:
    """The other groups that an option's YAML file sets."""
    file = CONF / group / f"{name}.yaml"
    entries = (yaml.safe_load(file.read_text()) or {}).get("defaults", []) if file.is_file() else []
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return [(key.lstrip("/").partition("@")[0], option) for key, option in pairs]


def yaml_comments(group: str, name: str) -> dict[str, str]:
    """The comment behind each key of a YAML file, by the key's dotted path; a comment may go on over further lines."""
    file = CONF / group / f"{name}.yaml"
    if not file.is_file():
        return {}
    inherited = (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
    found: dict[str, str] = {}
    for entry in inherited:
        if isinstance(entry, str) and entry != "_self_":
            found |= yaml_comments(group, entry)
    path: list[tuple[int, str]] = []
    for line in file.read_text().splitlines():
        more = re.match(r"\s{3,}# (.*)", line)
        if more and path:
            last = ".".join(key for _, key in path)
            found[last] = f"{found.get(last, '')} {more[1]}".strip()
            continue
        entry = re.match(r"(\s*)([\w.-]+):(?:[^#'\"]|'[^']*'|\"[^\"]*\")*(?:# (.*))?$", line)
        if entry is None:
            continue
        depth = len(entry[1])
        path = [*(one for one in path if one[0] < depth), (depth, entry[2])]
        if entry[3]:
            found[".".join(key for _, key in path)] = entry[3]
    return found
