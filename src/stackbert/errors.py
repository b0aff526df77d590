"""The two ways StackBERT fails, and the exit code of each.

A message is a sentence for the user: what is wrong, where, and what to do about it.
"""

import re

LONGEST = 2000
"""Characters of a message: a screenful. What makes one longer is a name or value of the user's."""
_LINE_END = re.compile(r"\s*[\r\n]\s*")


def shown(text: str) -> str:
    """Text that may hold anything, as one line that a terminal can be given.

    What a terminal would obey or could not show (control characters, direction marks, halves of
    characters) is spelled out; of a very long text the middle is left out.
    """
    line = _shortened(_LINE_END.sub(" ", text.strip()))
    if line.isprintable():
        return line
    # Spelled out, a character takes up to ten.
    spelled = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return _shortened("".join(spelled))


def _shortened(line: str) -> str:
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST * 2 // 3]} … {line[-LONGEST // 4 :]}"


class StackBertError(Exception):
    """Base of every error that is shown to the user as a sentence, never as a traceback."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(shown(message))


class UserError(StackBertError):
    """Something the user passed is wrong (a path, a field, a file's content): exit code 2."""

    exit_code = 2


class RunError(StackBertError):
    """The input was right but the run could not go on (a diverged loss, a full disk): code 1."""


class Interrupted(StackBertError):
    """The run was asked to stop (Ctrl-C, SIGTERM) and did so cleanly: code 128 + signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
