"""Numbers as a reader wants them: durations, SI prefixes, losses, file names."""

import re
import unicodedata

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def duration(seconds: float) -> str:
    """Seconds in the units one would say: "0.42 s", "41.2 s", "12 min 05 s", "3 h 20 min"."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 2 * 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit for an axis that reaches to `seconds`, and how many seconds it has."""
    if seconds <= 300:
        return "seconds", 1.0
    if seconds <= 3 * 3600:
        return "minutes", 60.0
    return "hours", 3600.0


def si(value: float) -> str:
    """Three digits and an SI prefix: "40.3 T", "5.13 M", "960"."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value /= 1000.0
        power += 1
    return f"{value:.3g} {_PREFIXES[power]}".rstrip()


def loss(value: float | None) -> str:
    """A loss in nats, to the third decimal; nothing where there is none."""
    return "" if value is None else f"{value:.3f}"


def difference(value: float) -> str:
    """A signed difference of losses, with a true minus: "+0.131", "−0.020"."""
    return f"{value:+.3f}".replace("-", "−")


def layers(depth: int) -> str:
    """ "1 layer", "4 layers"."""
    return f"{depth} layer" if depth == 1 else f"{depth} layers"


def slug(title: str) -> str:
    """A file name out of a title: "Loss by time (8 layers)" becomes "loss-by-time-8-layers"."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:80].strip("-") or "figure"
