"""Composing a configuration and holding it against what the components take; no torch is imported to compose one.

`compose(overrides)` reads conf/, `check(config)` raises the first offence as one sentence (ConfigurationError), and
`explain(error)` turns Hydra's own errors into such sentences.
"""

from flowdiff.config.arguments import parsed, quoted, setting, several, without
from flowdiff.config.combinations import check
from flowdiff.config.compose import compose, resolved
from flowdiff.config.explain import explain, hydra_errors, without_null_choices
from flowdiff.config.of_run import check_run, of_run, record_moved
from flowdiff.config.plugins import import_plugins, load_plugins
from flowdiff.config.trainer_arguments import trainer_defaults
from flowdiff.yaml_defaults import CONF, defaults, options

__all__ = [
    "CONF",
    "check",
    "check_run",
    "compose",
    "defaults",
    "explain",
    "hydra_errors",
    "import_plugins",
    "load_plugins",
    "of_run",
    "options",
    "parsed",
    "quoted",
    "record_moved",
    "resolved",
    "setting",
    "several",
    "trainer_defaults",
    "without",
    "without_null_choices",
]
