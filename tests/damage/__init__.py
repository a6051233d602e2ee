"""Damage to the files of a state directory, and what is told of it: `nox -s damage`."""
