"""Installing under a Python that is too old."""

import sys
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 9, 18), (3, 10, 13)])
def test_a_python_that_is_too_old_is_told_in_one_line_before_anything_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as raised:
        _ = ProjectMetadata(str(ROOT), PluginManager()).core
    told = ".".join(map(str, version))
    assert raised.value.code == f"workerd needs Python >=3.11, and {sys.executable} is {told}"


def test_a_python_that_is_new_enough_is_taken() -> None:
    assert ProjectMetadata(str(ROOT), PluginManager()).core.name == "workerd"
