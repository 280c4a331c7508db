"""Conditioners turn what is known about a sample, its class or its caption, into a Conditioning."""
