"""Policies that decide without the job, so that a list need not read each job that its caller may not see."""

from collections.abc import Mapping
from typing import Any

_RESOURCE: dict[str, Any] = {"Var": "resource"}
_OWNER: dict[str, Any] = {".": {"left": _RESOURCE, "attr": "owner"}}
_SHARES: dict[str, Any] = {".": {"left": _RESOURCE, "attr": "shares"}}
_PRINCIPAL: dict[str, Any] = {"Var": "principal"}


def loosen(policies: Mapping[str, Any]) -> dict[str, Any]:
    """Return policies with one decision for all jobs of other users that are not shared and that no policy names.

    They permit at least what the given ones permit on any such job. Conditions that may differ between such jobs are
    left out of `permit` policies, and `forbid` policies with such a condition are left out.

    Args:
        policies: in Cedar's JSON, by name.
    """
    loosened = {}
    for name, policy in policies.items():
        conditions = [each for each in policy["conditions"] if _is_uniform(each)]
        if len(conditions) == len(policy["conditions"]):
            loosened[name] = policy
        elif policy["effect"] == "permit":
            loosened[name] = {**policy, "conditions": conditions}
    return loosened


def _is_uniform(expression: Any) -> bool:
    """Return whether an expression has the same value for all such jobs."""
    match expression:
        case {"==": {"left": left, "right": right}} | {"!=": {"left": left, "right": right}} if [left, right] in (
            [_OWNER, _PRINCIPAL],
            [_PRINCIPAL, _OWNER],
        ) or (left == _RESOURCE and _has_no_variable(right)):
            return True
        case {"in": {"left": left, "right": right}} if left == _RESOURCE and _has_no_variable(right):
            return True
        case dict():
            if expression == _SHARES:
                return True
            return expression != _RESOURCE and all(map(_is_uniform, expression.values()))
        case list():
            return all(map(_is_uniform, expression))
        case _:
            return True


def _has_no_variable(expression: Any) -> bool:
    match expression:
        case {"Var": _}:
            return False
        case dict():
            return all(map(_has_no_variable, expression.values()))
        case list():
            return all(map(_has_no_variable, expression))
        case _:
            return True
