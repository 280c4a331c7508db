"""Which features samples are compared in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.features.extractor import Extractor
from flowdiff.evaluation.features.identity import IdentityFeatures
from flowdiff.evaluation.features.inception import InceptionFeatures, check_inception
from flowdiff.evaluation.features.small_cnn import trained_cnn


def build_extractor(data: Any, cache_dir: Path, inception_weights: Path | None = None) -> Extractor:
    """The extractor of a run, in eval mode and frozen.

    With a file of weights: `InceptionFeatures`. Without: what suits the data, for vectors `IdentityFeatures`, for
    images with classes a `SmallCNN` trained on their training split, once, and then read from `cache_dir`. Raises
    ConfigurationError as `check_extractable` does.
    """
    check_extractable(data, inception_weights)
    if inception_weights is not None:
        return InceptionFeatures(inception_weights, data.to_uint8)
    if len(data.shape) == 1:
        return IdentityFeatures(data.shape[0])
    return trained_cnn(data, cache_dir)


def check_extractable(data: Any, inception_weights: Path | None = None) -> None:
    """Raise ConfigurationError if no extractor suits the data; looks at its shape and classes only.

    A network of random weights could be used for images without classes, but nobody knows what its distance means.
    """
    if inception_weights is not None:
        check_inception(data, inception_weights)
    elif len(data.shape) == 3 and data.num_classes is None:
        raise ConfigurationError(
            f"metrics.frechet=true needs class labels to train its feature extractor, and dataset={data.name} has "
            "none: set metrics.frechet=false, or take metrics=inception."
        )
