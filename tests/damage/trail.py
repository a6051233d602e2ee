"""What a verification says of a damaged audit trail."""

from pathlib import Path

from audit.files import list_files
from audit.report import AuditError
from audit.verification import verify


def is_whole(folder: Path, pristine: Path) -> bool:
    """Return whether a trail still has every byte of every line that it had."""
    return all(
        (folder / file.name).is_file()
        and (folder / file.name).read_bytes().startswith((pristine / file.name).read_bytes())
        for file in list_files(pristine)
    )


def finding(folder: Path) -> str:
    """Verify a trail and return what was found; empty for nothing."""
    try:
        report = verify(folder)
    except (AuditError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    if report.fault is not None:
        return f"{report.fault.file}:{report.fault.line}: {report.fault.problem}"
    return f"{report.unfinished_bytes} bytes at the end are no line" if report.unfinished_bytes else ""
