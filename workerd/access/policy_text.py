"""Reading policies: what they name, and where in a text they stand, which Cedar's messages do not tell."""

import json
import re
from dataclasses import dataclass
from typing import Any

import cedarpy

_DEEPEST = 50
# Texts and comments, as Cedar's lexer takes them (cedar-policy-core, parser/grammar.lalrpop), and what structures them.
_TOKENS = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n\r]*|[(\[{]|[)\]}]|;')
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
    ends = [token.end() for token in _TOKENS.finditer(text) if token.group() == ";"]
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


def too_deep(text: str) -> str:
    """Tell what Cedar's parser, which calls itself for each bracket, would run out of stack with, and the daemon too.

    Returns:
        What is wrong; empty if nothing is.
    """
    depth = 0
    for token in _TOKENS.finditer(text):
        if token.group() in "([{":
            depth += 1
        elif token.group() in ")]}":
            depth -= 1
        if depth > _DEEPEST:
            line = text.count("\n", 0, token.start()) + 1
            return f"line {line}: more than {_DEEPEST} brackets are open at one place"
    return ""
