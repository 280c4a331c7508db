"""The README is short, keeps its two commands, links to what exists, and says the same in Chinese."""

import ast
import re
import unicodedata

import pytest
from pages import ROOT, commands, links, pages, words

import flowdiff

READMES = ("README.md", "README.zh-CN.md")
LINES, COLUMNS = 120, 120


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def width(line: str) -> int:
    """Columns of a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


@pytest.mark.parametrize("name", READMES)
def test_it_is_short(name):
    lines = text_of(name).splitlines()
    assert len(lines) <= LINES
    assert [line for line in lines if width(line) > COLUMNS] == []


@pytest.mark.parametrize("name", READMES)
def test_the_two_commands_stand_alone_in_a_line(name):
    """CI runs the second as it finds it there."""
    lines = text_of(name).splitlines()
    assert "pip install -e . && python train.py" in lines
    assert "pip install -e '.[test]' && pytest" in lines


def test_the_chinese_page_has_the_english_commands_code_tables_and_links():
    english, chinese = map(text_of, READMES)
    assert [words(c) for c in commands(english)] == [words(c) for c in commands(chinese)]
    assert re.findall(r"```python\n.*?```", english, re.DOTALL) == re.findall(r"```python\n.*?```", chinese, re.DOTALL)
    assert re.findall(r"[\d.,]{3,}", table(english)) == re.findall(r"[\d.,]{3,}", table(chinese))
    assert sorted(set(links(english))) == sorted(set(links(chinese)))


def table(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("| `"))


def test_citation_and_changelog_name_this_version():
    assert f"version: {flowdiff.__version__}\n" in text_of("CITATION.cff")
    assert f"## {flowdiff.__version__}\n" in text_of("CHANGELOG.md")


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(name):
    """The links of docs/ are checked when the site is built."""
    for target in links(text_of(name)):
        assert "://" in target or (ROOT / target).exists(), target


@pytest.mark.parametrize("name", pages())
def test_python_on_a_page_is_python(name):
    for code in re.findall(r"```python\n(.*?)```", pages()[name], re.DOTALL):
        shell = r"^(?:!(?:.*\\\n)*.*|%%.*)$"  # of a notebook
        ast.parse(re.sub(shell, "", code, flags=re.MULTILINE))
