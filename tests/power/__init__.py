"""Cutting the power of the disk that a daemon keeps its jobs on."""
