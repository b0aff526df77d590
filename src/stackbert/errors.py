"""The ways StackBERT fails, and the exit code of each.

A message is a sentence for the user: what is wrong, where, and what to do about it.
"""

from importlib.util import find_spec


class StackBertError(Exception):
    """Base of every error that is shown to the user as a sentence, never as a traceback."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.split()))  # libraries' reasons come in several lines


class UserError(StackBertError, ValueError):
    """Something the user passed is wrong (a path, a field, a file's content): exit code 2.

    A ValueError, so that pydantic names the field whose check raises it.
    """

    exit_code = 2


class MissingExtra(UserError):
    """A library is not installed; the sentence names the extra that brings it."""


def need(extra: str, *libraries: str, to: str) -> None:
    """Raise `MissingExtra` unless all libraries are there; `to` says what they are for."""
    for library in libraries:
        if not find_spec(library):
            raise MissingExtra(f"{to} takes {library}: pip install 'stackbert[{extra}]'.")


class RunError(StackBertError):
    """The input was right but the run failed (a diverged loss, a full disk): exit code 1."""


class Interrupted(BaseException):
    """A signal asked the command to stop (a run saves its state): exit code 128 + signal. It is no
    Exception, as torch.compile takes each of those for a failure of its own."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class OtherRankError(StackBertError):
    """Raised on other ranks; rank 0 reports the error."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code
