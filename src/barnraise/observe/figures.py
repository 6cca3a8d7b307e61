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
