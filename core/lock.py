"""One writer per run directory: a lock that the system gives back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from .config import ConfigError

FILE = ".lock"


class Lock:
    """Holds a run directory for this process, from construction to `close`.

    Raises ConfigError, naming the holder, where another process has it. The file stays, since removing it could let in two.
    """

    def __init__(self, directory: Path) -> None:
        self._file = (directory / FILE).open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._file.fileno(), 200, 0).decode(errors="replace").strip()
            self._file.close()
            raise ConfigError(f"{directory} is in use by another process ({holder or 'unknown'}): wait for it, or end it first") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def close(self) -> None:
        """Let others in. Harmless when called again."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
