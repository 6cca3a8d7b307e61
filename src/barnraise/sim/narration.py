"""What a message of an agreement says, in plain words; for a person who follows a trial."""

import re

from barnraise.consensus.agreement import Ballot

MAX_TEXT = 48


def in_words(message: Ballot) -> str:
    """Return what kind of message it is, of which view, and what else it says."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(message).__name__).lower()
    fields = [name_ for name_ in message.__struct_fields__ if name_ not in ("height", "view", "signature")]
    said = ", ".join(f"{field} {_text(getattr(message, field))}" for field in fields)
    return f"{name}, height {message.height}, view {message.view}{': ' if said else ''}{said}"


def _text(value: object) -> str:
    match value:
        case bytes() if value.isascii() and value.decode().isprintable():
            return repr(value[:MAX_TEXT].decode())
        case bytes():
            return value[:4].hex()
        case tuple():
            return f"of {len(value)}"
        case _:
            return str(value)[:MAX_TEXT]
