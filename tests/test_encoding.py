"""Text files are written and read as UTF-8 on every machine, not in the encoding of its locale."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Functions that fall back to the locale's encoding, and the position of `encoding` or `mode` among their arguments.
OPENING = ("open", "fdopen", "read_text", "write_text")


def _is_text_without_encoding(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in ("run", "Popen") and "text" in keywords:
        return "encoding" not in keywords
    if name not in OPENING or "encoding" in keywords:
        return False
    if name in ("read_text", "write_text"):
        return True
    modes = [word for word in (*call.args, keywords.get("mode")) if isinstance(word, ast.Constant)]
    strings = [word.value for word in modes if isinstance(word.value, str) and set(word.value) <= set("rwabxt+")]
    # zipfile, PIL and RunFolder have an `open` of their own; a text file is opened with a mode or a newline.
    return (any("b" not in mode for mode in strings)) or "newline" in keywords


@pytest.mark.parametrize("room", ["flowdiff", "hydra_plugins"])
def test_every_text_file_names_its_encoding(room):
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _is_text_without_encoding(node)
    ]
    assert found == []
