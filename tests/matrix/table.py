"""The table of docs/security.md, read off the page."""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
YES = "yes"
REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        call: what is called, as it stands in the first column.
        right: what that takes, the second column.
        cells: what everybody is answered, by the heading of the column.
    """

    call: str
    right: str
    cells: dict[str, str]

    @property
    def rpc(self) -> str:
        """The RPC: what is set as code first."""
        found = re.match(r"`(\w+)`", self.call)
        assert found is not None, f"{self.call} names no RPC"
        return found[1]


def read_table() -> tuple[list[str], list[Line]]:
    """Read the callers and the lines."""
    section = PAGE.read_text().partition("\n## The matrix\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in section.splitlines() if row.startswith("|")]
    assert rows, "the page has no matrix"
    (_, _, *callers), _, *lines = rows
    read = [Line(call, right.strip("`"), dict(zip(callers, cells, strict=True))) for call, right, *cells in lines]
    assert len({line.call for line in read}) == len(read), "a call stands in the matrix twice"
    return callers, read
