"""Files that survive a kill: whole and on the disk before anything names them, taken out of sight before they are removed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path

LEFTOVER = re.compile(r"\.(new|old)-.+|.+\.(jsonl|json)\.new")
"""Names that only a killed process leaves behind."""

BLOCK = 1 << 20

Fingerprint = list[int | str]
"""[size in bytes, SHA-256 in hex], as a manifest holds it."""


def write(path: Path, content: bytes, *, wait: bool = True) -> Fingerprint:
    """Write a new file and return the fingerprint of what was meant to be written.

    wait: until it is on the disk; without, whoever names the file must call `sync` on it before.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if wait:
            os.fsync(file.fileno())
    return [len(content), hashlib.sha256(content).hexdigest()]


def replace(path: Path, content: bytes) -> None:
    """Write a file, or put it in the place of an older one at once: no moment shows half of it or none."""
    work = hidden(path.parent, path.name)
    try:
        write(work, content)
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and whatever leads to it, each with its name on the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def unfit(path: Path, expected: object) -> str:
    """Why a file is not the one with this fingerprint; empty where it is. The size is compared before anything is read."""
    if path.is_symlink() or not path.is_file():
        return f"{path.name} is missing" if not os.path.lexists(path) else f"{path.name} is not a plain file"
    if not (isinstance(expected, list) and len(expected) == 2 and path.stat().st_size == expected[0]):
        return f"{path.name} has another size than when it was saved"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return "" if digest.hexdigest() == expected[1] else f"{path.name} has been changed"


def hidden(parent: Path, name: str, kind: str = "new") -> Path:
    """A fresh name beside `name` that no scan takes for a finished thing."""
    return parent / f".{kind}-{name}-{uuid.uuid4().hex[:8]}"


def discard(path: Path) -> None:
    """Remove a folder so that no moment shows half of it: renamed first, emptied after."""
    away = hidden(path.parent, path.name, "old")
    os.replace(path, away)
    shutil.rmtree(away)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder. Only for whoever holds the run's lock."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
