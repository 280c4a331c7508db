"""Composing a configuration and holding it against what the components take; no torch is imported to compose one.

`compose(overrides)` reads conf/, `check(config)` raises the first offence as one sentence (ConfigurationError), and
`explain(error)` turns Hydra's own errors into such sentences.
"""

from flowdiff.config.combinations import check, trainer_defaults
from flowdiff.config.compose import compose, of_run, resolved
from flowdiff.config.explain import explain
from flowdiff.config.plugins import import_plugins, load_plugins
from flowdiff.yaml_defaults import CONF, defaults, options

__all__ = [
    "CONF",
    "check",
    "compose",
    "defaults",
    "explain",
    "import_plugins",
    "load_plugins",
    "of_run",
    "options",
    "resolved",
    "trainer_defaults",
]
