"""A metadata hook that hatchling runs before it reads the dependencies."""

import re
import sys
from pathlib import Path
from typing import Any, Dict  # noqa: UP035

from hatchling.metadata.plugin.interface import MetadataHookInterface
from packaging.specifiers import SpecifierSet


class RequirePython(MetadataHookInterface):
    """End with one line under a Python that is too old.

    pip may look for the dependencies first, and then names one that has no version for such a Python. This file must
    also run under old ones.
    """

    def __init__(self, root: str, config: Dict[str, Any]) -> None:  # noqa: UP006
        super().__init__(root, config)
        project = Path(root, "pyproject.toml").read_text(encoding="utf-8")
        found = re.search('^requires-python = "(.*)"$', project, re.MULTILINE)
        version = ".".join(map(str, sys.version_info[:3]))
        if found is not None and version not in SpecifierSet(found[1]):
            sys.exit(f"workerd needs Python {found[1]}, and {sys.executable} is {version}")

    def update(self, metadata: Dict[str, Any]) -> None:  # noqa: UP006
        """Leave the metadata as they are."""
