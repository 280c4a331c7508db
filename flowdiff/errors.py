"""Errors that a user can cause and fix; every message says what was given, what is allowed and what to do."""

import difflib
import re
from collections.abc import Iterable


class FlowdiffError(Exception):
    """Base of the errors that the command line prints as one sentence, without a traceback.

    exit_status: the status with which the command exits.
    """

    exit_status = 2


class ConfigurationError(FlowdiffError, ValueError):
    """An invalid configuration key, value or combination."""


class NotADensity(FlowdiffError, TypeError):
    """A log-density or a flow sample was requested from a network that has none (unet, mlp)."""


class DataError(FlowdiffError, RuntimeError):
    """Data that is missing, unreadable or of another shape than declared."""


class RunError(FlowdiffError, RuntimeError):
    """A run folder or checkpoint that is missing, foreign or incompatible."""


class InverseDidNotConverge(FlowdiffError, ArithmeticError):
    """An iterative inverse stopped before it reached its tolerance."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """'did you mean "x"? Allowed are a, b, c': the end of every error about an unknown name."""
    allowed = [str(a) for a in allowed]
    if not allowed:
        return "there are none to choose from"
    close = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed are {', '.join(allowed)}" if hint else f"allowed are {', '.join(allowed)}"


def text_hint(value: object, allowed: str) -> str:
    """A clause for the end of an error about a value: that it is text, if `allowed` asks for a number or a truth value.

    YAML and the command line make numbers of what looks like one, but a quoted value and a variable are text.
    """
    if not isinstance(value, str) or not re.search(r"number|integer|boolean|true", allowed):
        return ""
    if not re.fullmatch(r"true|false|[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value.strip(), re.IGNORECASE):
        return ""
    return f"; {value!r} is text here: remove its quotes, or decode a variable by ${{oc.decode:${{oc.env:NAME}}}}"
