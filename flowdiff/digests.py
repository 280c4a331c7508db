"""Hashes of the inputs of a result, for the names of cache files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(*parts: Any) -> str:
    """Hash of JSON values and bytes: 12 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part).encode()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:12]


def weight_hash(weights: Mapping[str, Tensor]) -> str:
    """Hash of a state dict: names, dtypes, shapes and bytes."""
    parts: list[Any] = []
    for name, value in weights.items():
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        parts += [name, str(value.dtype), list(value.shape), flat.numpy().tobytes()]
    return digest(*parts)
