"""One case of the fuzzer: a valid file is damaged, read, and what came of it is judged."""

import contextlib
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fuzz_damage import Damage
from stackbert.errors import StackBertError, UserError
from stackbert.pretraining.checkpoints import DamagedCheckpointError

Kind = Literal["refused", "read", "failed"]
LONGEST_MESSAGE = 4000
"""Characters: some three screens."""
SECONDS = 10.0
"""A case that takes longer hangs. The slowest right ones take a tenth of a second."""
MEMORY = 512 << 20
"""Bytes by which a case may raise the process' peak; the files are below a megabyte."""
_ACTIONS = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind", "pickle.find_class", "ctypes.dlopen"),
)


class WrongResult(Exception):
    """What was read is not what the file says."""


class Hang(BaseException):
    """A case took too long. No `Exception`, so that no reader takes it for damage."""


class Reader:
    """Something that reads files, with valid ones to damage.

    Attributes:
        name: of the reader, for the command line.
        reads: what it reads, for the table.
        damages: for each file that may be damaged, how; the path is below the reader's folder.
        named: what an error must name, besides the damaged file or its folder.
    """

    name: ClassVar[str]
    reads: ClassVar[str]
    damages: ClassVar[Mapping[str, Damage]]
    named: ClassVar[tuple[str, ...]] = ()

    def prepare(self, folder: Path) -> None:
        """Write the valid files."""
        raise NotImplementedError

    def read(self, folder: Path, damaged: str) -> None:
        """Read the folder and compare what came of it with what its files say.

        Raises:
            WrongResult: it is something else, or a file that is right was refused.
            StackBertError, DamagedCheckpointError: the file was refused.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    number: int
    file: str
    """Which was damaged."""
    kind: Kind
    what: str
    """The message of the error; "" of what was read."""
    seconds: float

    @property
    def signature(self) -> str:
        """Failures of one are probably the same."""
        return self.what.partition("\n")[0][:200]


class Fuzzer:
    """Runs cases of one reader in a folder of its own.

    Args:
        reader: which.
        folder: to make.
        seed: with a case's number it decides everything about the case.
    """

    def __init__(self, reader: Reader, folder: Path, seed: int) -> None:
        self.reader = reader
        self.folder = folder
        self.seed = seed
        folder.mkdir(parents=True)
        reader.prepare(folder)
        self._valid = {name: (folder / name).read_bytes() for name in reader.damages}
        self._watch = Watch()
        # A reader that cannot read what is right, or writes into it, would make every case void.
        before = self._listing()
        for name in reader.damages:
            reader.read(folder, name)
        if self._listing() != before:
            raise RuntimeError(f"{reader.name} changes the folder that it reads")

    def damaged(self, number: int) -> tuple[str, bytes]:
        """The file that case `number` damages, and its content then."""
        draw = random.Random(f"{self.seed}/{self.reader.name}/{number}")
        name = draw.choice(list(self.reader.damages))
        return name, self.reader.damages[name](self._valid[name], draw)

    def run(self, number: int) -> Outcome:
        """Damage, read, judge, and put the valid file back."""
        name, content = self.damaged(number)
        path = self.folder / name
        path.write_bytes(content)
        kind: Kind
        begun, peak = time.perf_counter(), _peak()
        self._watch.seen.clear()
        try:
            with _alarm(SECONDS), self._watch:
                self.reader.read(self.folder, name)
            kind, what = "read", ""
        except (StackBertError, DamagedCheckpointError) as error:
            fault = unclear(error, (path.name, path.parent.name, *self.reader.named))
            kind, what = ("failed", f"{fault}: {error}") if fault else ("refused", str(error))
        except WrongResult as error:
            kind, what = "failed", f"wrong result: {error}"
        except Hang:
            kind, what = "failed", f"hang: more than {SECONDS:.0f} s\n{traceback.format_exc()}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever it is, it is a failure
            kind, what = "failed", f"{_short(error)}\n{traceback.format_exc()}"
        finally:
            path.write_bytes(self._valid[name])
        more = _peak() - peak
        if self._watch.seen:
            kind, what = "failed", f"did what no reader does: {', '.join(self._watch.seen)}"
        elif more > MEMORY and kind != "failed":
            kind, what = "failed", f"memory: {more >> 20:,} MiB more; then {what or 'it was read'}"
        return Outcome(number, name, kind, what, time.perf_counter() - begun)

    def _listing(self) -> list[Path]:
        return sorted(self.folder.rglob("*"))


def unclear(error: Exception, names: tuple[str, ...]) -> str:
    """What is wrong with an error as a sentence for the user; "" if nothing is."""
    text = str(error)
    if not any(name in text for name in names):
        return "unclear: it names no file"
    if len(text) > LONGEST_MESSAGE:
        return f"unclear: {len(text):,} characters"
    bad = [c for c in text if not (c.isprintable() or c in "\n\t\u00a0\u2028")]
    if bad:
        return f"unclear: it holds {bad[0]!r}"
    ends = ".…?)" if isinstance(error, UserError) else ".…?)}]'\"" + text[-1]
    if text.rstrip()[-1] not in ends:
        return "unclear: it is no sentence"
    return ""


def _short(error: BaseException) -> str:
    """The class, the message without numbers, and the innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if "/stackbert/" in one.filename] or list(frames)[-1:]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
    return f"{type(error).__name__} in {place}: {str(error)[:80]!r}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class Watch:
    """Within it, programs started, connections made and pickles read are noted.

    Python tells a hook of each; a hook stays for good, and is deaf outside.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._on = False
        sys.addaudithook(self._hear)

    def __enter__(self) -> "Watch":
        self._on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event in _ACTIONS:
            self.seen.append(f"{event} {str(arguments)[:80]}")
