"""What is installed: exactly the six packages, and what pip needs to know of them."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = dict.fromkeys(("audit", "pki", "system", "workerctl", "workerd"), ROOT) | {"worker_api": ROOT / "generated"}
DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the project's wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run([*build, "--outdir", folder, ROOT], check=True, timeout=100)
    [path] = folder.iterdir()
    with zipfile.ZipFile(path) as wheel:
        return set(wheel.namelist())


def test_the_wheel_holds_every_file_of_the_six_packages_and_nothing_else(packed: set[str]) -> None:
    """What Python leaves beside the sources does not count."""
    wanted = {
        str(path.relative_to(parent))
        for name, parent in PACKAGES.items()
        for path in (parent / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in packed if ".dist-info/" not in name} == wanted


def test_nothing_but_the_six_packages_becomes_importable(packed: set[str]) -> None:
    """No `generated`, no `tests`: names that would be in everybody's way."""
    top_level = {name.partition("/")[0] for name in packed}
    assert {name for name in top_level if not name.endswith(".dist-info")} == PACKAGES.keys()


def test_the_wheel_says_what_pip_needs_to_know(packed: set[str]) -> None:
    assert {name.partition(".dist-info/")[2] for name in packed if ".dist-info/" in name} == DIST_INFO
