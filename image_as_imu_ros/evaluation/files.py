"""Files of results."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    temporary.write_bytes(content)
    os.replace(temporary, path)
