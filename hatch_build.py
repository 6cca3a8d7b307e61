"""Compiles the codecs' inner loops when the package is built; without a C compiler the package does without them."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

FOLDER = Path("src/barnraise/codec")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
STRICT = "-ffp-contract=off"
"""No fused multiply-add: numpy's bits are the kernels'. Never -march=native: a wheel runs elsewhere too."""


class KernelsHook(BuildHookInterface[Any]):
    """Runs for wheels and for editable installations."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say of the wheel which platform it is for."""
        folder = Path(self.root) / FOLDER
        library = folder / "libkernels.so"
        library.unlink(missing_ok=True)
        complaint = compile_kernels(folder / "kernels.c", library)
        if complaint:
            self.app.display_warning(f"barnraise is installed without its compiled kernels: {complaint}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(platform_tags())}"


def compile_kernels(source: Path, library: Path) -> str:
    """Build the library; return why that was not possible, or ""."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return f"there is no C compiler {compiler[0]!r}; set CC to one"
    if sys.byteorder != "little":
        return "they are for little-endian machines"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    complaint = ""
    # Some compilers and C libraries cannot put code for several processors into one file.
    for extra in ((), ("-DONE_TARGET",)):
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            command = [*compiler, *FLAGS, STRICT, f'-DSOURCE_DIGEST="{digest}"', *extra, str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                made.replace(library)  # a process that has the old one loaded keeps it
                return ""
            complaint = f"{shlex.join(command)} failed: {done.stderr.strip()[-500:]}"
    return complaint
