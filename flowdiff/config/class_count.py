"""`dataset.num_classes: null` where the classes are in the files: the number is counted before the run id is made.

config.yaml then holds the number, so the run loads where its data are not, and its run id is that of the same number
given by hand. Where neither the conditioner nor dataset.caption_template asks for classes, null stays.
"""

from __future__ import annotations

from typing import Any

from flowdiff import registry
from flowdiff.errors import ConfigurationError, DataError


def with_class_count(plain: dict[str, Any]) -> dict[str, Any]:
    """A resolved config whose dataset.num_classes is counted in the files if it is null and something needs it.

    Raises:
        ConfigurationError: the classes cannot be counted.
    """
    dataset, conditioner = (plain.get(group) for group in ("dataset", "conditioner"))
    if not isinstance(dataset, dict) or not isinstance(conditioner, dict) or dataset.get("num_classes", 0) is not None:
        return plain
    of_conditioner = registry.runtime_parameters(registry.resolve("conditioner", str(conditioner.get("name"))))
    if "num_classes" not in of_conditioner and dataset.get("caption_template") is None:
        return plain
    try:
        count = registry.create("dataset", dataset).count_classes()
    except DataError as error:
        raise ConfigurationError(str(error)) from error
    return {**plain, "dataset": {**dataset, "num_classes": count}}
