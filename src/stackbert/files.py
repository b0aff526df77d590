"""Writing so that a crash never leaves something half-made that looks whole.

Everything StackBERT saves is written beside its place, synced to the disk and renamed into it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from stackbert.errors import RunError, StackBertError, UserError

_CHUNK = 1 << 20


def os_error_sentence(error: OSError, doing: str) -> StackBertError:
    """Turn an operating-system error into the sentence the user needs.

    Args:
        error: what the operating system said.
        doing: what was being done, to follow "while" ("writing the corpus to out/").

    Returns:
        `RunError` for a full disk or quota, `UserError` for everything else (permissions, a
        read-only or missing folder), ready to be raised.
    """
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"The disk is full while {doing}{place}. Free some space and run the command again; "
            "nothing that was already saved is lost."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError(f"No permission while {doing}{place}. Choose a folder you may write to.")
    if error.errno == errno.EROFS:
        return UserError(f"The file system is read-only while {doing}{place}. Choose another one.")
    if error.errno == errno.ENOENT:
        return UserError(f"A file or folder is missing while {doing}{place}. Check the path.")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return UserError(
            f"A file stands where a folder is needed, or the reverse, while {doing}{place}. "
            "Choose another path."
        )
    return RunError(f"The operating system reported '{error.strerror}' while {doing}{place}.")


@contextlib.contextmanager
def explaining_os_errors(doing: str) -> Iterator[None]:
    """Within this block an `OSError` becomes the sentence of `os_error_sentence`."""
    try:
        yield
    except OSError as error:
        raise os_error_sentence(error, doing) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a folder's entries (new names, renames) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file below `folder`, and the folders themselves, durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small file whole or not at all: temporary neighbour, sync, rename."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp's 0600 would hide the file from the user's group
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json_atomically(path: Path, value: Any) -> None:  # noqa: ANN401 (JSON is any value)
    """Write `value` as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # A file name in another encoding stands in Python with halves of characters, which only
        # JSON's own spelling can carry.
        text = json.dumps(value, indent=2)
    write_text_atomically(path, text + "\n")


def is_plain_name(name: str) -> bool:
    """Whether `name` can only be an entry of the folder it is looked up in, never outside it."""
    return name not in ("", ".", "..") and not {"/", "\0"} & set(name)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it; of a link the link, never what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def folder_made_whole(folder: Path) -> Iterator[Path]:
    """Fill a folder under another name; it takes its own name only once everything is on disk.

    Yields `<folder>.partial`, empty. When the block ends well, its files are synced and it is
    renamed to `folder`; when it fails, it is removed. What a killed process left behind under the
    partial name is removed by the next attempt. Two writers at once are kept apart by a lock
    beside the folder, so neither can remove the other's work.

    Raises:
        UserError: `folder` exists already, or another process is writing it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + ".partial")
    with locked(folder.with_name(f".{folder.name}.lock"), f"{folder} is being written", drop=True):
        if folder.exists():
            raise UserError(f"{folder} exists already. Remove it or choose another folder.")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            yield partial
            sync_tree(partial)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(folder.parent)


@contextlib.contextmanager
def held_folder(folder: Path, doing: str) -> Iterator[None]:
    """Make a folder that calls go on with, and keep other processes out of it.

    Raises:
        UserError: another process holds it, or it cannot be written: the sentence names `doing`.
        RunError: the disk is full.
    """
    with explaining_os_errors(doing):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", f"{folder} is in use"):
            yield


@contextlib.contextmanager
def locked(path: Path, what: str, *, drop: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system lets go of it however the process ends.

    Args:
        path: the lock file, made if need be.
        what: the beginning of the sentence if the lock is taken ("runs/a is being trained").
        drop: remove the lock file at the end.

    Raises:
        UserError: another process holds the lock.
    """
    file = _lock_file(path, what)
    try:
        yield
    finally:
        if drop:
            path.unlink(missing_ok=True)
        file.close()


def _lock_file(path: Path, what: str) -> TextIO:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A holder that dropped the file between our open and our lock left us a lock on a
            # name that is gone; the next process would lock a new file of that name.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except BlockingIOError:
            file.close()
            raise UserError(
                f"{what} by another process. Wait for it to end or choose another folder."
            ) from None
        file.close()
