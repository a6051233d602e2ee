"""What a verification says of a damaged audit trail."""

from pathlib import Path

from audit.report import AuditError
from audit.verification import verify


def finding(folder: Path) -> tuple[str, bool]:
    """Verify a trail.

    Returns:
        What was found, empty for nothing; and whether it lasts, which a line that was not finished does not: the writer
        that goes on removes it.
    """
    try:
        report = verify(folder)
    except (AuditError, OSError) as error:
        return f"{type(error).__name__}: {error}", True
    if report.fault is not None:
        return f"{report.fault.file}:{report.fault.line}: {report.fault.problem}", True
    return (f"{report.unfinished_bytes} bytes at the end are no line" if report.unfinished_bytes else ""), False
