"""The code of an earlier commit, taken out of the repository's own history, to run beside today's.

A program of it is started with `OlderCode.prefix`: the same interpreter and packages, with the earlier tree in front of
today's. What is installed says today's handlers and commands, so the tree has metadata of its own.
"""

import io
import subprocess
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORMAT_2 = "1e34ed422c7adc3541d00641ae2c6a12b7420d42"
"""The last commit whose jobs are of format 2."""


class HistoryMissing(Exception):
    """The commit is not here: this is no clone, a shallow one, or git is not installed."""


@dataclass(frozen=True, slots=True)
class OlderCode:
    """The packages of an earlier commit below one folder."""

    tree: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that runs `python -m …` as its argument with these packages, and becomes it."""
        path = f"PYTHONPATH={self.tree}:{self.tree / 'generated'}"
        return ("env", path, "PYTHONSAFEPATH=1")  # or the folder that the tests run in would come first


def check_out(commit: str, tree: Path) -> OlderCode:
    """Write the packages of a commit into a folder, which is made.

    Raises:
        HistoryMissing: the commit is not here.
    """
    pyproject = tomllib.loads(_git("show", f"{commit}:pyproject.toml").decode())
    packages = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    with tarfile.open(fileobj=io.BytesIO(_git("archive", commit, *packages))) as archive:
        unpack(archive, tree)
    project = pyproject["project"]
    metadata = tree / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return OlderCode(tree)


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Unpack an archive of this repository, with all kinds of files, on every Python that is supported."""
    archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", lambda member, _: member)
    archive.extractall(folder)


def _git(*arguments: str) -> bytes:
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False, timeout=60)
    except FileNotFoundError as error:
        raise HistoryMissing("git is not installed") from error
    if result.returncode:
        raise HistoryMissing(result.stderr.decode(errors="replace").strip())
    return result.stdout
