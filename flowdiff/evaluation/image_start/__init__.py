"""Samples that begin with a picture: noised and denoised again, or by its base point."""
