"""Files: read with one kind of error, written whole or not at all.

Whatever a parser raises inside `reading` becomes one sentence. Everything StackBERT saves is
written under another name, synced and renamed, so a crash never leaves half a file that looks
whole. `Record` is the base of every JSON file that StackBERT reads back.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from stackbert.errors import RunError, StackBertError, UserError
from stackbert.units import did_you_mean

LOCK = ".lock"
_MARK = ".stackbert-partial"
"""Lies in each folder that `new_folder` fills, so that nothing else is ever cleaned up."""


def reason(error: BaseException) -> str:
    """What a library's exception says, with its class where the text alone says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip().rstrip(".")
    return (
        text
        if " " in text and not isinstance(error, KeyError)
        else f"{type(error).__name__}: {text}"
    )


@contextlib.contextmanager
def reading(path: str | Path, hint: str = "") -> Iterator[None]:
    """Turn whatever a parser raises in this block into one sentence about `path`.

    Args:
        path: the user's file or folder.
        hint: a sentence on what to do, put at the end.

    Raises:
        UserError: the block raised something that is not a sentence already.
    """
    try:
        yield
    except (StackBertError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # each parser has its own; a panic in Rust is no Exception
        if isinstance(error, FileNotFoundError) and error.filename:
            raise UserError(f"{error.filename} does not exist. {hint}") from error
        if isinstance(error, MemoryError):
            raise UserError(f"{path} does not fit into memory. {hint}") from error
        raise UserError(f"{path} cannot be read: {reason(error)}. {hint}") from error


@contextlib.contextmanager
def writing(doing: str) -> Iterator[None]:
    """Turn an error of the operating system in this block into a sentence.

    Args:
        doing: what is being done, to follow "while" ("building the corpus in out/").

    Raises:
        RunError: the disk is full, or the system reports something unexpected.
        UserError: permissions, a read-only or missing folder, a file in the place of a folder.
    """
    try:
        yield
    except OSError as error:
        raise _os_sentence(error, doing) from error
    except Exception as error:
        # safetensors reports a failed write with an exception of its own.
        code = re.search(r"os error (\d+)", str(error))
        if type(error).__name__ != "SafetensorError" or not code:
            raise
        number = int(code.group(1))
        raise _os_sentence(OSError(number, os.strerror(number)), doing) from error


def _os_sentence(error: OSError, doing: str) -> StackBertError:
    place = f" ({error.filename})" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return RunError(
                f"The disk is full while {doing}{place}. Free some space and run the command "
                "again; nothing that was already saved is lost."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return UserError(
                f"{error.strerror} while {doing}{place}. Choose a folder you may write to."
            )
        case errno.ENOENT:
            return UserError(f"A file or folder is missing while {doing}{place}. Check the path.")
        case errno.ENOTDIR | errno.EISDIR | errno.EEXIST:
            return UserError(
                f"A file stands where a folder is needed, or the reverse, while {doing}{place}. "
                "Choose another path."
            )
    return RunError(f"The operating system reports '{reason(error)}' while {doing}{place}.")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries (new names, renames) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(folder: Path, *, parents: bool = True) -> Iterator[Path]:
    """Fill a folder under another name; it takes its own once everything is on the disk.

    Yields `FOLDER.partial`, empty. What a killed process left under that name is removed first.
    Without `parents` the folder above must exist.

    Raises:
        UserError: `folder` exists, another process is writing it, or `FOLDER.partial` is not ours.
    """
    partial = folder.with_name(folder.name + ".partial")
    if folder.exists():
        raise UserError(f"{folder} exists already. Remove it or choose another folder.")
    if partial.exists():
        if not (partial / _MARK).exists():
            raise UserError(f"{partial} is in the way and was not written by StackBERT. Move it.")
        with locked(partial, f"{folder} is being written"):
            shutil.rmtree(partial)
    partial.mkdir(parents=parents)
    (partial / _MARK).touch()
    try:
        with locked(partial, f"{folder} is being written"):
            yield partial
        for name in (_MARK, LOCK):
            (partial / name).unlink()
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            else:
                sync_folder(path)
        sync_folder(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder.parent)


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Make `folder` if need be, and keep other processes out of it.

    The system releases the lock however the process ends.

    Raises:
        UserError: another process holds it; `doing` begins the sentence ("out/ is in use").
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0, mode=0o666)  # the system applies the umask
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{doing} by another process. Wait for it to end or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


class Record(BaseModel):
    """A JSON file that StackBERT writes and reads back.

    A subclass sets `what` ("a corpus") for messages and, when its fields change, a new `version`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    what: ClassVar[str] = "a record"
    version: ClassVar[int] = 2
    format: int = 0

    @model_validator(mode="before")
    @classmethod
    def _stamp(cls, values: Any) -> Any:  # noqa: ANN401 (JSON is any value)
        if isinstance(values, dict) and values.setdefault("format", cls.version) != cls.version:
            raise ValueError("it was written by another version of StackBERT; make it again")
        return values

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file.

        Raises:
            UserError: the file is missing, damaged, or of another version.
        """
        if not path.is_file():
            raise UserError(f"{path.parent} is not {cls.what}: it has no {path.name}.")
        with reading(path):
            try:
                return cls.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise UserError(f"{path} cannot be read: {explain(error, cls)}.") from error

    def write(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        write_text(path, self.model_dump_json(indent=2) + "\n")


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """All problems of a validation as one sentence that names each field.

    Args:
        error: what pydantic raised.
        model: the model that was validated; its fields give suggestions for a wrong name.
    """
    # A sequence whose items were refused is also called too short; once is enough.
    items = [e for e in error.errors() if e["type"] != "too_short" or not e["input"]]
    return "; ".join(_problem(item, model) for item in items)


def _problem(item: Any, model: type[BaseModel]) -> str:  # noqa: ANN401 (pydantic's details)
    place = [str(part) for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, place[:-1])
        return f"there is no field '{'.'.join(place)}'{did_you_mean(place[-1], known)}"
    # Where several types are allowed, pydantic appends their names to the place.
    while place and ("[" in place[-1] or place[-1] in ("constrained-int", "literal", "bool")):
        place.pop()
    field = ".".join(place)
    if item["type"] == "missing":
        return f"the field '{field}' is missing"
    message = item["msg"].removeprefix("Value error, ").rstrip(".")
    message = message[:1].lower() + message[1:]
    if item["type"] == "value_error":
        return f"{field}: {message}" if field else message
    given = repr(item["input"])
    return f"{field}: {message}, got {given if len(given) <= 80 else given[:79] + '…'}".lstrip(": ")


def _fields_at(model: type[BaseModel], place: list[str]) -> list[str]:
    part: Any = model
    for name in place:
        if not name.isdigit():
            annotation = part.model_fields[name].annotation
            part = (getattr(annotation, "__args__", None) or [annotation])[0]
    return list(part.model_fields)
