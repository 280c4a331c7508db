"""Hints: pictures computed from clean images, which say what a sample of a controlled model is to look like."""

from flowdiff.data.hints.base import Hint

__all__ = ["Hint"]
