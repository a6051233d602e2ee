"""What a mutation must not bring about."""

import asyncio
import enum
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.damage.faces import DamageReported, Missing

_CONTEXT, _MOST_TEXT = 40, 300


class Rule(enum.StrEnum):
    """A promise that was broken."""

    STARTS = "the service starts, or where it may refuse it says clearly why"
    SCANS = "the list is answered"
    LISTED = "every job is listed, once, with its true values or as damaged"
    STATUS = "a status is true, or says that the job is damaged"
    END = "no end is told but the true one"
    BYTES = "no wrong bytes are served"
    WHOLE = "no bytes are missing without a word"
    FOUND = "a job that is there is not told as missing"
    ERROR = "damage is told as damage, not as another error"
    HANGS = "no call hangs"
    REMOVABLE = "a damaged job can be removed, and is gone then"
    ONCE = "a request key starts no second program while its job is there"
    RIGHTS = "nobody gains a right that was not given"
    NEIGHBOURS = "other jobs are untouched"
    TRAIL = "a verification finds what was done to the trail"


def difference(told: object, true: object) -> str:
    """Describe where two values differ."""
    one, other = repr(told), repr(true)
    if one == other:
        return f"{one} instead of a value that looks the same"
    start = _common(one, other)
    common = _common(one[start:][::-1], other[start:][::-1])
    before = one[max(0, start - _CONTEXT) : start]
    parts = (text[start : len(text) - common][:_MOST_TEXT] for text in (one, other))
    return f"after {before!r} " + " instead of ".join(map(repr, parts))


def _common(one: str, other: str) -> int:
    """Count the characters at the beginning that are equal."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise.

    Attributes:
        label: the job that it is about; empty when it is about all.
    """

    rule: Rule
    label: str
    text: str

    def __str__(self) -> str:
        return f"[{self.rule.name}] {self.label + ': ' if self.label else ''}{self.text}"


@dataclass(slots=True)
class Findings:
    """The violations of one batch, and how many promises were put to the test.

    Attributes:
        limit_seconds: how long any call may take.
    """

    limit_seconds: float
    violations: list[Violation] = field(default_factory=list)
    checks: int = 0

    def add(self, rule: Rule, label: str, text: str) -> None:
        """Note a violation."""
        self.violations.append(Violation(rule, label, text))

    @asynccontextmanager
    async def limited(self, label: str, what: str, *, may_be_damaged: bool = True) -> AsyncIterator[None]:
        """Make one call; note whatever goes wrong but a report of damage where there may be one.

        Args:
            label: the job that it is about; empty for none.
            what: the call, for people.
            may_be_damaged: whether the job was damaged.
        """
        self.checks += 1
        try:
            async with asyncio.timeout(self.limit_seconds):
                yield
        except DamageReported as error:
            if not may_be_damaged:
                self.add(Rule.NEIGHBOURS, label, f"{what} says damaged: {error}")
        except TimeoutError as error:
            self.add(Rule.HANGS, label, f"{what} took more than {self.limit_seconds:g} s {error}")
        except Missing:
            self.add(Rule.FOUND if may_be_damaged else Rule.NEIGHBOURS, label, f"{what} says that there is no job")
        except Exception as error:
            text = f"{what} failed: {type(error).__name__}: {error}"
            self.add(Rule.ERROR if may_be_damaged else Rule.NEIGHBOURS, label, text)
