"""Files: read with one kind of error, written whole or not at all.

What is saved is written under another name, synced and renamed.
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

from stackbert.errors import Interrupted, RunError, StackBertError, UserError
from stackbert.units import did_you_mean

LOCK = ".lock"
_UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
_UNUSABLE |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
# Python, torch, the system and the loader of libraries.
_NO_MEMORY = re.compile(r"MemoryError|(allocate|enough|out of) memory|new thread|map segment")


def reason(error: BaseException) -> str:
    """What a library's exception says, with its class where the text alone says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip().rstrip(".")
    says_much = " " in text and not isinstance(error, KeyError)
    return text if says_much else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def reading(path: str | Path, hint: str = "") -> Iterator[None]:
    """Turn whatever a parser raises in this block into one sentence about `path`, a UserError.

    `hint` is a sentence on what to do, put at the end.
    """
    try:
        yield
    except (StackBertError, Interrupted, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # each parser has its own; a panic in Rust is no Exception
        if _NO_MEMORY.search(repr(error)) or "Too many open files" in str(error):
            raise  # it says nothing of the file
        if isinstance(error, FileNotFoundError) and error.filename:
            raise UserError(f"{error.filename} does not exist. {hint}") from error
        raise UserError(f"{path} cannot be read: {reason(error)}. {hint}") from error


@contextlib.contextmanager
def writing(doing: str) -> Iterator[None]:
    """Turn an error of the operating system in this block into a sentence: "… while `doing`."

    A path that cannot be used is a UserError; a full disk or memory and all else a RunError.
    """
    try:
        yield
    except StackBertError:
        raise
    except Exception as error:
        if _NO_MEMORY.search(repr(error)):
            raise RunError(
                f"The memory is full while {doing}. Take a smaller model, or fewer rows at a time "
                "(batch.micro_batch), which leaves the result as it is."
            ) from error
        # safetensors reports a failed write with an exception of its own.
        code = re.search(r"os error (\d+)", str(error))
        if type(error).__name__ == "SafetensorError" and code:
            number, place = int(code[1]), ""
        elif isinstance(error, OSError):
            number, place = error.errno or 0, f" ({error.filename})" if error.filename else ""
        else:
            raise
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"The disk is full while {doing}{place}. Free some space and run the command "
                "again; nothing that was already saved is lost."
            ) from error
        said = f"{reason(error)} while {doing}{place}."
        if number in _UNUSABLE:
            said += " Choose a path that is free and that you may write to."
            raise UserError(said) from error
        raise RunError(said) from error


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
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries (new names, renames), durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(folder: Path, *, parents: bool = True) -> Iterator[Path]:
    """Fill a folder under another name; it takes its own once everything is on the disk.

    Yields `FOLDER.partial`, empty but for a lock. What a killed process left there is removed; a
    folder of this name that is not ours is a UserError, like `FOLDER` itself. Without `parents` the
    folder above must exist.
    """
    partial, doing = folder.with_name(folder.name + ".partial"), f"{folder} is being written"
    if folder.exists():
        raise UserError(f"{folder} exists already. Remove it or choose another folder.")
    if partial.exists():
        if any(partial.iterdir()) and not (partial / LOCK).exists():
            raise UserError(f"{partial} is in the way and was not written by StackBERT. Move it.")
        with locked(partial, doing):
            shutil.rmtree(partial)
    partial.mkdir(parents=parents)
    try:
        with locked(partial, doing):
            yield partial
            for path in (*partial.rglob("*"), partial):
                sync(path)
            (partial / LOCK).unlink()  # last, as it tells that the folder is ours
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(folder.parent)


def refuse_foreign(folder: Path, what: str, *own: str) -> None:
    """Raise UserError if a folder holds anything, but none of the files that tell what it is."""
    held = sorted(path.name for path in folder.glob("[!.]*"))
    if held and not set(held) & set(own):
        raise UserError(
            f"{folder} is not empty and not {what} (it holds {', '.join(held[:3])}"
            f"{', …' if len(held) > 3 else ''}). Choose a new folder for --out."
        )


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Make `folder` if need be, and keep other processes out of it, however this one ends.

    If another one holds it, `doing` begins the UserError: "out/ is in use by another process".
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        held = lock.acquire()
    except Timeout:
        said = f"{doing} by another process. Wait for it to end or choose another folder."
        raise UserError(said) from None
    with held:
        for left in folder.glob(".*.partial"):  # by a killed `write_text`
            left.unlink()
        yield


class Record(BaseModel):
    """A JSON file that StackBERT writes and reads back; `version` counts changes of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    what: ClassVar[str] = "a record"  # in messages: "a corpus"
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
        """The record in a file, or a UserError: it is missing, damaged, or of another version."""
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

    The fields of `model`, which was validated, give suggestions for a wrong name.
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
    message = item["msg"].removeprefix("Value error, ").rstrip(".")
    message = f"{'.'.join(place)}: {message[:1].lower()}{message[1:]}".removeprefix(": ")
    if item["type"] not in ("value_error", "missing"):
        message += f", got {item['input']!r:.80}"
    return message


def _fields_at(model: type[BaseModel], place: list[str]) -> list[str]:
    part: Any = model
    for name in place:
        if not name.isdigit():
            annotation = part.model_fields[name].annotation
            part = (getattr(annotation, "__args__", None) or [annotation])[0]
    return list(part.model_fields)
