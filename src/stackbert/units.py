"""Durations, counts and suggestions, as users write and read them."""

import difflib
import itertools
import math
import re
from collections.abc import Iterable

from stackbert.errors import UserError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds from "90s", "20m", "1.5h", "2d" or a combination such as "1h30m"."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or math.isinf(seconds):
        raise UserError(f"'{text}' is not a duration. Write 90s, 20m, 1.5h or 1h30m.")
    if seconds <= 0:
        raise UserError(f"A budget of '{text}' leaves no time to train.")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration to read: "0.8 s", "48 s", "29 min 19 s", "3 h 5 min", "2 d 4 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = (86400, "d"), (3600, "h"), (60, "min"), (1, "s")
    for (large, large_name), (small, small_name) in itertools.pairwise(units):
        count = round(seconds / small)
        if count * small >= large:
            rest = count % (large // small)
            whole = f"{count * small // large} {large_name}"
            return f"{whole} {rest} {small_name}" if rest else whole
    return f"{round(seconds)} s"


def signed(value: float, digits: int = 1) -> str:
    """A difference: "+1.3", "−0.4"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 run", "1,200 runs"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion to put behind an unknown name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
