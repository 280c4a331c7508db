"""MkDocs hook: turn TeX between $…$ or $$…$$ into MathML when the site is built.

Browsers render MathML themselves, so formulas need no JavaScript and no other server.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of a formula (generic: true).
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# Where latex2mathml leaves out or adds space: function names, ∼, |w|, ‖x‖, a/b and primes.
SPACING = [
    (r"<mi>(log|ln|tanh)</mi>|<mo>(inf|sup)</mo>", r'<mo lspace="0.17em" rspace="0.17em">\1\2</mo>'),
    (r"<mi>&#x0007E;</mi>", r"<mo>&#x0223C;</mo>"),
    (r"<mo>(&#x0007C;|&#x02016;|&#x0002F;)</mo>", r'<mo lspace="0" rspace="0" stretchy="false">\1</mo>'),
    (
        r"<msup>(<m(?:i|text)>[^<]*</m(?:i|text)>)<mi>&#x02032;</mi></msup>",
        r'<mrow>\1<mo lspace="0" rspace="0">&#x02032;</mo></mrow>',
    ),
]


def on_page_content(content: str, **_: Any) -> str:
    """Replace every formula of a rendered page."""
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    text = convert(html.unescape(found[2]).strip(), display="block" if found[1] == "div" else "inline")
    for before, after in SPACING:
        text = re.sub(before, after, text)
    return text
