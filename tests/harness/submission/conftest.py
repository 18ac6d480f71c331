"""A made-up package that is right, and a copy of it for each test to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.harness.submission.made_package import make_package


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("made"))


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil; the originals lie beside it."""
    return Path(shutil.copytree(made.parent, tmp_path / "spoiled")) / "package"
