"""The hooks that build the site."""

import sys

import pytest
from pages import ROOT


@pytest.fixture(scope="session")
def hooks():
    """docs/hooks on the import path, as MkDocs puts it there."""
    folder = str(ROOT / "docs" / "hooks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
