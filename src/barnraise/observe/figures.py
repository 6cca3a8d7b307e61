"""Numbers as a person reads them."""


def size(num_bytes: float) -> str:
    """Return a size in decimal units: ``3.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def count(number: float) -> str:
    """Return a count with its thousands apart: ``1,204,000``."""
    return f"{number:,.0f}"


def measured(number: float | None, digits: int = 3) -> str:
    """Return a measured value, or a dash where nobody measured."""
    return "-" if number is None else f"{number:.{digits}f}"


def latency(seconds: float | None) -> str:
    """Return a latency: ``0.21 ms``, ``80 ms``; or that nobody measured it yet."""
    return "not known yet" if seconds is None else f"{1000 * seconds:.{_digits(1000 * seconds)}f} ms"


def bandwidth(bytes_s: float | None) -> str:
    """Return a bandwidth as lines are sold: ``94 Mbit/s``; or that nobody measured it yet."""
    return "not known yet" if bytes_s is None else f"{8e-6 * bytes_s:,.{_digits(8e-6 * bytes_s)}f} Mbit/s"


def duration(seconds: float) -> str:
    """Return how long something short takes: ``3.1 ms``, ``2.40 s``."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.{_digits(1000 * seconds)}f} ms"


def _digits(number: float) -> int:
    """Return how many decimals two or three digits in all take."""
    return 0 if number >= 10 else 1 if number >= 1 else 2
