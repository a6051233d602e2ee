"""Where a job's part of a command line begins. It is passed on as it is, and never parsed."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import UNSET, App
from cyclopts.argument import ArgumentCollection

from workerctl.parameters import CommandLine

_END_OF_OPTIONS = "--"


def split_command_line(app: App, arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split a command line before the program's name, or before `--` if that comes first.

    Nothing after the program's name is an option of workerctl (POSIX XBD 12.2, guidelines 9 and 10).

    Returns:
        What is to be parsed, and what `bind_job` takes; that is empty for a command that runs no program.
    """
    collections = [app.meta.assemble_argument_collection()]
    command, position = app, 0
    while position < len(arguments) and command.default_command is None:
        word = arguments[position]
        if word == _END_OF_OPTIONS:
            return arguments, ()
        position += 1
        if _is_option(word):
            position += _count_values(word, collections)
        elif word in command:
            command = command[word]
    if command.default_command is None or not _job_parameter(command.default_command):
        return arguments, ()
    collections.append(command.assemble_argument_collection())
    while position < len(arguments) and _is_option(word := arguments[position]) and word != _END_OF_OPTIONS:
        position += 1 + _count_values(word, collections)
    return arguments[:position], arguments[position:]


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


def _count_values(option: str, collections: Sequence[ArgumentCollection]) -> int:
    """Return how many of the following words an option takes."""
    if "=" in option:
        return 0
    for collection in collections:
        with contextlib.suppress(ValueError):
            argument, keys, implicit = collection.match(option)
            return argument.token_count(keys)[0] if implicit is UNSET else 0
    return 0
