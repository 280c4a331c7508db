"""The pages that are made from the registry: a section for each component, a row for each setting."""

import re
from importlib import import_module
from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

from flowdiff import registry
from flowdiff.yaml_defaults import CONF

pytest.importorskip("mkdocs")
GROUPS = (*registry.GROUP_MODULES, *registry.NESTED_MODULES)


@pytest.fixture(scope="module")
def components(hooks):
    return import_module("generate_components")


@pytest.fixture(scope="module")
def docstrings(hooks):
    return import_module("docstrings")


def test_every_group_is_described(components):
    assert sorted(components.GROUPS) == sorted(GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_every_component_has_a_section_with_its_settings(group, components):
    page = components.group_page(group)
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == ({file.stem for file in (CONF / group).glob("*.yaml")} or set(registry.names(group)))
    for name in registry.names(group):
        text = sections[name]
        variant = re.search(r"^As \[`(\w+)`\]", text, re.MULTILINE)  # of another option of the same class
        for setting in registry.hyperparameters(registry.resolve(group, name)):
            assert f"| `{setting}" in text + (sections[variant[1]] if variant else ""), f"{group}={name}: {setting}"


def test_a_page_shows_default_range_and_meaning(components):
    (row,) = [line for line in components.group_page("flow").splitlines() if line.startswith("| `min_bin`")]
    assert "`0.02`" in row
    assert "0 &lt; " in row or "float >" in row


def test_annotations_in_words(components):
    assert components.allowed(PositiveInt) == "int > 0"
    assert components.allowed(PositiveInt | None) == "int > 0 or `null`"
    assert components.allowed(Literal["l1", "l2"]) == "`l1`, `l2`"
    assert components.allowed(Annotated[float, Field(ge=0, lt=1)]) == "float ≥ 0, &lt; 1"
    assert components.allowed(list[PositiveInt]) == "list of int > 0"
    assert components.allowed(bool) == "bool"


def test_yaml_comments_with_their_further_lines(components):
    comments = components.yaml_comments("flow", "realnvp")
    assert comments["form"].startswith("auto | vector | image")
    assert "form=image" in comments["form"]  # in its second line
    assert components.yaml_comments("metrics", "inception")["num_samples"]


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("z₂ = x₂·exp(s(x₁, e)) + t(x₁, e),  log|det| = Σ s", True),
        ("w = σ⁻² = SNR", True),
        ("At w = 1 and outside the interval it is D_c, by one evaluation.", False),
        ("Args:\n    n: a = b", False),
        ("A flow of vectors applied to samples of any shape", False),
        ("sampler = create what the config says about it", False),
    ],
)
def test_equations_are_told_from_sentences(paragraph, expected, docstrings):
    assert docstrings.is_equation(paragraph) == expected


def test_docstrings_keep_their_stars_and_brackets(docstrings):
    text = docstrings.as_markdown("x (B, *shape) of conf/<group>, `a*b`\n\nArgs:\n    **settings: of (B, *shape).")
    assert text == "x (B, \\*shape) of conf/&lt;group>, `a*b`\n\nArgs:\n    **settings: of (B, \\*shape)."


def test_the_body_of_an_example_is_code(docstrings):
    text = docstrings.as_markdown("One.\n\nExample:\n    a = f(*b)\n\n    c = a\n\nSource: Me.")
    assert text == "One.\n\nExample:\n        a = f(*b)\n\n        c = a\n\nSource: Me."


def test_formulas_become_mathml(hooks):
    pytest.importorskip("latex2mathml")
    mathml = import_module("mathml")
    page = mathml.on_page_content('<p><span class="arithmatex">\\(x \\sim \\log p\\)</span></p>')
    assert page.startswith("<p><math")
    assert "&#x0223C;" in page
    assert "lspace" in page
