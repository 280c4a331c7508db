"""Hashes of what a result was computed from, for the names of the files that keep it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(*parts: Any) -> str:
    """Hash of anything JSON knows, and of bytes: 12 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part).encode()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:12]


def fingerprint(split: Any) -> str:
    """Hash of a split of data: its size, and up to 1,024 of its samples and labels, evenly spaced."""
    indices = torch.linspace(0, len(split) - 1, min(len(split), 1024)).round().long()
    batch = split[indices]
    return digest(len(split), list(batch.x.shape), batch.x.cpu().numpy().tobytes(), batch.label.cpu().numpy().tobytes())


def weight_hash(weights: Mapping[str, Tensor]) -> str:
    """Hash of a state dict: names, types, shapes and bytes."""
    parts: list[Any] = []
    for name, value in weights.items():
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        parts += [name, str(value.dtype), list(value.shape), flat.numpy().tobytes()]
    return digest(*parts)
