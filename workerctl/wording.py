"""Translating the daemon's errors, which name fields and RPCs, into options and commands of the command line.

An error about a field begins with its name. Other fields, and calls such as `List(all_owners=true)`, are in backquotes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_METADATA = {"workerd-username": "--username"}
_JOB = {"job_id": "--uuid"}
_SPAWN = {
    "envs": "--envs",
    "max_log_bytes": "--max-log-bytes",
    "name": "--name",
    "request_key": "--request-key",
    "run_as": "--run-as",
    "timeout": "--timeout-seconds",
    "working_directory": "--working-directory",
}
_FIELD = re.compile(r"`([a-z][a-z_-]*)`")
_CALL = re.compile(r"`([A-Z][A-Za-z]*)\(([^`)]*)\)`")


@dataclass(frozen=True, slots=True)
class _Rpc:
    """The command for an RPC.

    Attributes:
        command: the words after `workerctl`.
        options: the options, by the request's fields.
    """

    command: str
    options: Mapping[str, str] = field(default_factory=dict)


_RPCS = {
    "Spawn": _Rpc("spawn", _SPAWN),
    "Stop": _Rpc("stop", _JOB | {"grace": "--grace-seconds"}),
    "Status": _Rpc("status", _JOB | {"show_envs": "--show-envs"}),
    "StreamLog": _Rpc("stream-log", _JOB | {"offset_bytes": "--offset", "streams": "--stream-type"}),
    "Remove": _Rpc("remove", _JOB),
    "List": _Rpc("list", {"all_owners": "--all-owners", "name": "--name", "states": "--state"}),
    "Share": _Rpc("share", _JOB | {"rights": "--allow", "user": "--with"}),
    "IssueCredential": _Rpc("credential issue", {"lifetime": "--ttl", "rights": "--allow"}),
    "ExplainDecision": _Rpc("policy test", {"job_id": "--job", "right": "--action", "target": "--on", "user": "--as"}),
    "WhoAmI": _Rpc("whoami"),
}


def to_command_line(message: str, command: str = "", subject: str = "") -> str:
    """Return an error of the daemon's with options and commands in the place of fields and RPCs.

    Args:
        message: the error.
        command: the command that was given, such as "policy test"; empty if it is not known.
        subject: the field of the request that the error is about; empty for none.
    """
    options = _options_of(command)
    if subject in options and message.startswith(f"{subject} "):
        message = options[subject] + message.removeprefix(subject)
    message = _FIELD.sub(lambda found: options.get(found[1], found[0]), message)
    return _CALL.sub(_to_command, message)


def _options_of(command: str) -> dict[str, str]:
    name = {"run": "spawn"}.get(command, command)
    known = [rpc for rpc in _RPCS.values() if rpc.command == name] or [*reversed(_RPCS.values())]
    return {field: option for rpc in known for field, option in rpc.options.items()} | _METADATA


def _to_command(found: re.Match[str]) -> str:
    rpc = _RPCS.get(found[1])
    if rpc is None:
        return found[0]
    words = ["workerctl", rpc.command]
    for name, value in (pair.split("=", 1) for pair in found[2].split(", ") if "=" in pair):
        words += [rpc.options.get(name, name), *([] if value == "true" else [value])]
    return f"`{' '.join(words)}`"
