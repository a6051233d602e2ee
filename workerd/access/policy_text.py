"""Reading policies: what they name, and where in a text they stand, which Cedar's messages do not tell."""

import json
import re
from dataclasses import dataclass
from typing import Any

import cedarpy

_DEEPEST = 50
_LONGEST_PATH = 3
# Texts and comments, as Cedar's lexer takes them (cedar-policy-core, parser/grammar.lalrpop).
_TEXTS = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n\r]*')
_ALL_BUT_ENDS = re.compile(r"[^\n]")  # of lines
_BRACKETS = re.compile(r"[(\[{]|[)\]}]")
_TOO_LONG_PATH = re.compile(rf"\bhas\s+\w+(?:\s*\.\s*\w+){{{_LONGEST_PATH},}}")
_BLANK = re.compile(r"(?:\s|//[^\n\r]*)*")


def parse(text: str) -> Any:
    """Give the JSON that Cedar makes of policies, in which each has a name by its place: policy0, policy1.

    Raises:
        ValueError: they are none.
        RecursionError: they are nested too deep.
    """
    return json.loads(cedarpy.policies_to_json_str(text))


def named(kind: str, policies: Any) -> frozenset[str]:
    """Tell which entities of a kind policies, in Cedar's JSON, name."""
    match policies:
        case {"type": str(name), "id": str(identifier)} if name == kind:
            return frozenset({identifier})
        case dict():
            return frozenset().union(*(named(kind, each) for each in policies.values()))
        case list():
            return frozenset().union(*(named(kind, each) for each in policies))
        case _:
            return frozenset()


@dataclass(frozen=True, slots=True)
class Statement:
    """One policy as it is written.

    Attributes:
        line: on which it begins.
    """

    line: int
    text: str


def statements(text: str) -> list[Statement]:
    """Split a text into its policies. One that is not finished is the last."""
    found: list[Statement] = []
    begin = line = 0
    ends = [end.end() for end in re.finditer(";", _bare(text))]
    for end in (*ends, len(text)):
        blank = _BLANK.match(text, begin, end)
        start = blank.end() if blank is not None else begin
        line += text.count("\n", begin, start)
        if start < end:
            found.append(Statement(line + 1, text[start:end]))
        line += text.count("\n", start, end)
        begin = end
    return found


def place_of_fault(text: str) -> str:
    """Name the line on which the first policy begins that cannot be read, as the beginning of a message."""
    for statement in statements(text):
        try:
            parse(statement.text)
        except (ValueError, RecursionError):
            return f"line {statement.line}: "
    return ""


def cost_of(text: str) -> str:
    """Tell what would cost the daemon its stack, or more time than calls can wait.

    Cedar's parser calls itself for each bracket. A path after `has` becomes one condition for each of its steps, with
    all steps before it, and is looked at once more for whatever the policy can be about.

    Returns:
        What is wrong; empty if nothing is.
    """
    bare = _bare(text)
    depth = 0
    for bracket in _BRACKETS.finditer(bare):
        depth += 1 if bracket.group() in "([{" else -1
        if depth > _DEEPEST:
            return f"{_line(bare, bracket)}more than {_DEEPEST} brackets are open at one place"
    if path := _TOO_LONG_PATH.search(bare):
        problem = f"a path after `has` has more than {_LONGEST_PATH} steps: ask for one after another"
        return f"{_line(bare, path)}{problem}"
    return ""


def _bare(text: str) -> str:
    """Blank out texts and comments; everything else stays in its place."""
    return _TEXTS.sub(lambda found: _ALL_BUT_ENDS.sub(" ", found.group()), text)


def _line(text: str, place: re.Match[str]) -> str:
    """Name a line, as the beginning of a message."""
    return f"line {text.count(chr(10), 0, place.start()) + 1}: "
