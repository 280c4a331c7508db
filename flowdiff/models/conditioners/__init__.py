"""Conditioners turn what is known about a sample, its class or its caption, into a Conditioning."""

from flowdiff.models.conditioners.base import Conditioner

__all__ = ["Conditioner"]
