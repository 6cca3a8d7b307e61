"""Train one model together, on machines that nobody owns all of."""

__version__ = "0.1.0"
