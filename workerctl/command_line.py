"""Where a job's part of a command line begins. It is passed on as it is, and never parsed."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import UNSET, App
from cyclopts.argument import ArgumentCollection

from workerctl.parameters import CommandLine, split_at_commas

_END_OF_OPTIONS = "--"


def split_command_line(app: App, arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split a command line before the program's name, or before `--` if that comes first.

    Nothing after the program's name is an option of workerctl (POSIX XBD 12.2, guidelines 9 and 10).

    Returns:
        What is to be parsed, and what `bind_job` takes; that is empty for a command that runs no program.
    """
    options = _Options(app.meta)
    command, position = app, 0
    while position < len(arguments) and command.default_command is None:
        word = arguments[position]
        if word == _END_OF_OPTIONS:
            return arguments, ()
        position += 1
        if _is_option(word):
            position += options.count_values(word)
        elif word in command:
            command = command[word]
    if command.default_command is None or not _job_parameter(command.default_command):
        return arguments, ()
    options.add(command)
    own, lists = list(arguments[:position]), dict[str, list[str]]()
    while position < len(arguments) and _is_option(word := arguments[position]) and word != _END_OF_OPTIONS:
        words = arguments[position : position + 1 + options.count_values(word)]
        position += len(words)
        name, is_given, value = "=".join(words).partition("=")
        if is_given and options.is_list(name) and words[-1] != _END_OF_OPTIONS:
            lists.setdefault(name, []).append(value)
        else:
            own.extend(words)
    # As one word each: cyclopts looks at all further words for each repetition of an option.
    own.extend(f"{name}={','.join(values)}" for name, values in lists.items())
    return own, arguments[position:]


def bind_job(command: Callable[..., Any], bound: inspect.BoundArguments, job: Sequence[str]) -> None:
    """Give a command the program and its arguments.

    Args:
        job: the second part of what `split_command_line` returned.
    """
    if job:
        name = _job_parameter(command)
        parsed = bound.arguments.get(
            name, ()
        )  # of what looks like an option, cyclopts takes negative numbers for words
        bound.arguments[name] = (*parsed, *job[job[0] == _END_OF_OPTIONS :])


def _job_parameter(command: Callable[..., Any]) -> str:
    """Return the name of the parameter that takes the program and its arguments; empty if there is none."""
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL and parameter.annotation == CommandLine:
            return name
    return ""


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


class _Options:
    """The options of the main application and a command, as far as they tell where the words of others begin."""

    def __init__(self, *apps: App) -> None:
        self._collections: list[ArgumentCollection] = []
        self._known: dict[str, tuple[int, bool]] = {}
        for app in apps:
            self.add(app)

    def add(self, app: App) -> None:
        self._collections.append(app.assemble_argument_collection())
        self._known.clear()

    def count_values(self, option: str) -> int:
        """Return how many of the following words an option takes."""
        return 0 if "=" in option else self._look_up(option)[0]

    def is_list(self, name: str) -> bool:
        """Return whether repetitions of an option mean the same as its values with commas between."""
        return self._look_up(name)[1]

    def _look_up(self, name: str) -> tuple[int, bool]:
        if name not in self._known:
            self._known[name] = 0, False
            for collection in self._collections:
                with contextlib.suppress(ValueError):
                    argument, keys, implicit = collection.match(name)
                    count = argument.token_count(keys)[0] if implicit is UNSET else 0
                    self._known[name] = count, argument.parameter.converter is split_at_commas
                    break
        return self._known[name]
