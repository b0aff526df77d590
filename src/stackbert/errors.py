"""The two ways StackBERT fails, and the exit code of each.

A message is a sentence for the user: what is wrong, where, and what to do about it.
"""


class StackBertError(Exception):
    """Base of every error that is shown to the user as a sentence, never as a traceback."""

    exit_code = 1


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
