"""The texts of the policies: those that come with the daemon, and the files of a folder."""

import functools
import os
import stat
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path

from system.ownership import Untrusted, require_trusted
from workerd.errors import PolicyInvalid

DEFAULT_FILE = "default.cedar"
_SHIPPED = f"{DEFAULT_FILE} (the daemon's own)"
_NONE: Mapping[str, str] = {}
_SUFFIX = ".cedar"
_MOST_BYTES = 1 << 20  # far beyond what people write, and no more than can be compiled while calls wait


def read_policies(
    folder: Path, *, must_be_there: bool = False, unfinished: Collection[str] = (), before: Mapping[str, str] = _NONE
) -> dict[str, str]:
    """Read the default policies and those in a folder, by the names of the files.

    Args:
        must_be_there: whether a folder that is not there is none that can be read; otherwise it has no files.
        unfinished: the names of files that somebody has begun to write: as long as they are empty, what they held
            before counts.
        before: what was read before.

    Raises:
        PolicyInvalid: one of them cannot be read.
    """
    sources = {DEFAULT_FILE: _shipped()}
    for name in _names(folder, must_be_there=must_be_there):
        path = folder / name
        text = _read(path)
        if text:
            sources[name] = text
        elif name not in unfinished:
            raise PolicyInvalid(str(path), "it is empty: if there are to be no policies in it, write a comment")
        elif name in before:
            sources[name] = before[name]
    return sources


def files_of(sources: Mapping[str, str]) -> list[str]:
    """Tell the names of the files that are in force, with what came with the daemon as such."""
    shipped = sources.get(DEFAULT_FILE) == _shipped()
    return [_SHIPPED if name == DEFAULT_FILE and shipped else name for name in sorted(sources)]


def missing_from(sources: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Tell which of the operator's files are in force no more."""
    return [name for name in files_of(before) if name != _SHIPPED and name not in files_of(sources)]


@functools.cache  # what the daemon runs with is what it was started with, whatever is installed meanwhile
def _shipped() -> str:
    return resources.files("workerd.access").joinpath("policies", DEFAULT_FILE).read_text("utf-8")


def _names(folder: Path, *, must_be_there: bool) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(_SUFFIX))
    except FileNotFoundError as error:
        if not must_be_there:
            return []
        raise PolicyInvalid(str(folder), "the folder is not there any more: put it back, or restart") from error
    except OSError as error:  # what is forbidden in it would not be, if it were taken for empty
        raise PolicyInvalid(str(folder), f"the folder cannot be read: {error.strerror}") from error


def _read(path: Path) -> str:
    """Read a file, and nothing that a read could wait for, or never come to the end of."""
    try:
        require_trusted(path)
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PolicyInvalid(str(path), "it cannot be read: it is no ordinary file")
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise PolicyInvalid(str(path), f"it is longer than {_MOST_BYTES} bytes: make several files of it")
        return data.decode()
    except Untrusted as error:
        raise PolicyInvalid(str(path), str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyInvalid(str(path), f"it cannot be read: {error}") from error
