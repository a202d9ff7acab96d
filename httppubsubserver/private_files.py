"""Files with secrets: put in place as a whole or not at all, and readable for their owner alone."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

__all__ = ["write_private"]


def write_private(path: Path, content: str | bytes, *, mode: int = 0o600, keep_mode: bool = False) -> None:
    """Put a file in place as a whole or not at all; one that it replaces keeps its owner, and its mode if asked.

    Raises `OSError`.
    """
    path = path.resolve()  # where a link leads to
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                present = path.stat()
                if (present.st_uid, present.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), present.st_uid, present.st_gid)
                if keep_mode:
                    mode = present.st_mode & 0o7777
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
