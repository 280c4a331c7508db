"""Docstrings as Markdown: equations become blocks of text, and characters that Markdown would read stay as they are.

`mkdocstrings` loads the class below as a griffe extension; generate_components.py calls `as_markdown`.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

CODE = re.compile(r"(`[^`]*`)")
EXAMPLE = re.compile(r"^Example:\n(?:(?: {4}.*)?(?:\n|\Z))+", re.MULTILINE)  # its body is code
EQUATION_LINES = 4  # an equation is a paragraph of at most this many lines


class EquationsOfDocstrings(griffe.Extension):
    """Apply `as_markdown` to the docstring of every object that is shown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute that griffe reads."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """A cleaned docstring with its equations and its example as code, and `*` and `<` escaped outside of code."""
    docstring = EXAMPLE.sub(lambda found: re.sub(r"(?m)^(?=.)", "    ", found[0]).lstrip(), docstring)
    blocks = re.split(r"\n[ \t]*\n", docstring)
    return "\n\n".join(_equation(block) if is_equation(block) else _escaped(block) for block in blocks)


def is_equation(paragraph: str) -> bool:
    """Whether an unindented paragraph is an equation: short lines around an `=` or `∝`, and no sentence.

    An equation may end in a comma or a remark in brackets, but not in a full stop, and no words follow each other
    in a row of more than three.
    """
    lines = paragraph.splitlines()
    if not lines or len(lines) > EQUATION_LINES or paragraph.startswith((" ", "-", "`", ">>>")):
        return False
    if re.match(r"[A-Z][a-z]+:", paragraph):  # Args:, Raises:, Source: …
        return False
    words = re.search(r"(?:\b[A-Za-z]{2,}\b[ ,]+){4}", paragraph)
    return bool(re.search(r"[=∝≈≤∼]", paragraph)) and not paragraph.rstrip().endswith((".", ":")) and words is None


def _equation(paragraph: str) -> str:
    return f"```text\n{paragraph}\n```"


def _escaped(paragraph: str) -> str:
    if paragraph.startswith(("    ", "Example:")) or paragraph.lstrip().startswith(">>>"):
        return paragraph  # an indented block: an equation or an example already
    lines = []
    for line in paragraph.splitlines():
        name = re.match(r"\s*\*{0,2}\w*:?", line)  # **settings: of a section Args is a name
        start = name[0] if name else ""
        parts = CODE.split(line[len(start) :])
        text = (p if p.startswith("`") else p.replace("*", r"\*").replace("<", "&lt;") for p in parts)
        lines.append(start + "".join(text))
    return "\n".join(lines)
