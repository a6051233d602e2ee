"""What tests of an authority's folder share: a folder."""

from pathlib import Path

import pytest

from pki.store import PkiFolder


@pytest.fixture
def folder(tmp_path: Path) -> PkiFolder:
    """An authority with one user."""
    folder = PkiFolder(tmp_path / "state" / "pki")
    folder.initialize()
    folder.issue_client("alice")
    return folder
