"""Features of the Inception network of 2015, which the literature uses for FID, KID and the Inception score.

    x in [−1, 1] ↦ uint8 level k·255/(levels − 1), three channels ↦ 299 × 299 as TensorFlow 1 resizes, without
    antialiasing ↦ (pixel − 128)/128 ↦ the 2,048 means of the last maps

The network and the resizing are torch-fidelity's. The user provides the file of weights: nothing is downloaded.
Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from flowdiff.data.base import Dataset
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.evaluation.features.extractor import Extractor
from flowdiff.evaluation.ranks import local_device

SOURCE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
NAMES = {"fd": "fid", "kd": "kid", "is": "is"}


class InceptionFeatures(Extractor):
    """Inception features of images with one or three channels, computed on the GPU if there is one.

    Args:
        weights: file with the state dict of torch-fidelity's network.
        to_uint8: maps model-space images to uint8 images of the same shape.

    Raises:
        DataError: the file holds something else.
    """

    preprocessing = "uint8, 3 channels, 299 × 299 bilinear as in TensorFlow 1"

    def __init__(self, weights: Path, to_uint8: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.name = "inception"
        self.num_features = 2048
        self.accuracy = None
        self.weight_hash = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        self.to_uint8 = to_uint8
        try:
            torch.load(weights, map_location="meta", weights_only=True)  # torch-fidelity would run code in a pickle
            with torch.random.fork_rng(devices=[]):  # it draws random weights first
                self.network = FeatureExtractorInceptionV3("inception", ["2048"], str(weights))
        except Exception as error:
            raise DataError(
                f"metrics.inception_weights={weights} does not hold the weights of torch-fidelity's Inception network "
                f"({type(error).__name__}): take {SOURCE}."
            ) from error
        # The Inception score is defined without the bias.
        self.head = nn.Linear(self.num_features, self.network.fc.out_features, bias=False)
        self.head.weight = self.network.fc.weight
        self.to(local_device() if torch.cuda.is_available() else "cpu")
        self.eval().requires_grad_(False)

    def metric_name(self, kind: str) -> str:
        return NAMES[kind]

    def forward(self, x: Tensor) -> Tensor:
        k = self.to_uint8(x)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # what is not named is set to False
            return self.network(k.expand(-1, 3, -1, -1))[0]


def check_inception(data: Dataset, weights: Path) -> None:
    """Raise ConfigurationError if the file is missing, or the data are not images of 1 or 3 channels."""
    if len(data.shape) != 3 or data.shape[0] not in (1, 3):
        raise ConfigurationError(
            f"metrics.inception_weights is for images of 1 or 3 channels, and dataset={data.name} has samples of shape "
            f"{'×'.join(map(str, data.shape))}: take metrics=default, or metrics=vectors for vectors."
        )
    if not weights.is_file():
        raise ConfigurationError(
            f"metrics.inception_weights={weights} does not exist: save {SOURCE} there, or name the file with "
            "metrics.inception_weights=<path>; nothing is downloaded."
        )
