"""What workerd is measured by, and against what: `nox -s bench`, or `python -m benchmarks` where all is installed.

Each benchmark runs ours and the peer's in turn, checks what was moved, and gives one or more figures.
"""
