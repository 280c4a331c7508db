"""The choice of the features that samples are compared in."""

from __future__ import annotations

from pathlib import Path

from flowdiff.data.base import DataModule, Dataset
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.features.extractor import Extractor
from flowdiff.evaluation.features.identity import IdentityFeatures
from flowdiff.evaluation.features.inception import InceptionFeatures, check_inception
from flowdiff.evaluation.features.small_cnn import trained_cnn


def build_extractor(data: DataModule, cache_dir: Path, inception_weights: Path | None = None) -> Extractor:
    """The extractor of a run, in eval mode and frozen.

    With a file of weights it is `InceptionFeatures`. Without, it is `IdentityFeatures` for vectors; for images with
    classes or attributes it is a `SmallCNN`, trained once on the training split and then read from `cache_dir`. Raises
    ConfigurationError as `check_extractable` does.
    """
    check_extractable(data, inception_weights)
    if inception_weights is not None:
        return InceptionFeatures(inception_weights, data.to_uint8)
    if len(data.shape) == 1:
        return IdentityFeatures(data.shape[0])
    return trained_cnn(data, cache_dir)


def check_extractable(data: Dataset, inception_weights: Path | None = None) -> None:
    """Raise ConfigurationError if no extractor fits the data; uses their shape and classes only."""
    if inception_weights is not None:
        check_inception(data, inception_weights)
    elif not has_features(data):
        raise ConfigurationError(
            f"metrics.frechet=true needs class labels to train its feature extractor, and dataset={data.name} has "
            "none: set metrics.frechet=false, or take metrics=inception."
        )


def has_features(data: Dataset) -> bool:
    """Whether the data have features of their own: vectors, and images with classes.

    A network of random weights would work for images without classes, but its distance has no known meaning.
    """
    return len(data.shape) != 3 or data.num_classes is not None
