"""The version of flowdiff; the package's metadata takes it from here."""

__version__ = "0.3.0"
