"""The theme pccl: Prime's collective library beside ours and Gloo, where a machine can run it; elsewhere why it cannot."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from measure.comparison import LOOPBACK, Way, fill, free_ports, group, ours, take_turns
from measure.ranks import loopback
from measure.themes import Report, Settings

WORLD: Final = 4
SIZE_MB: Final = 25.0
PCCL: Final = Way(name="pccl", side="pccl")


def pccl(settings: Settings, report: Report) -> None:
    """Measure our side against PCCL, as ratios of its time."""
    why = lacking()
    if why is not None:
        report.skip("pccl", why)
        return
    with _master() as address, group(loopback(WORLD), ("ours",)) as ranks:
        for rank in ranks:
            rank.tell("open", side="pccl", rank=rank.index, addresses=[address] * WORLD, interface=LOOPBACK)
        for rank in ranks:
            rank.answer()
        fill(ranks, SIZE_MB)
        taken = take_turns(ranks, (PCCL, ours(), ours("int8")), settings.repetitions)
    found = {}
    for name in ("fp32", "int8"):
        ratios = taken.ratios(name, PCCL.name)
        found[name] = {kind: report.figure(f"{name} / pccl, {kind}", ratios[kind], "x") for kind in ("cpu", "wall")}
    report.figures["pccl"] = found
    report.keep("pccl", taken)


def lacking() -> str | None:
    """Say in words why PCCL cannot be measured; None: it can."""
    asked = subprocess.run([sys.executable, "-c", "import pccl"], check=False, capture_output=True, text=True)
    if not asked.returncode:
        return None
    last = (asked.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return (
        f"pccl cannot be imported here ({last}). The package pypccl 1.0 has wheels for Python 3.12 alone (this is "
        f"{platform.python_version()}) and wants libcuda.so.1 and glibc 2.38 or later."
    )


@contextmanager
def _master() -> Iterator[str]:
    """Run the process that PCCL's peers meet at; yield its address."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with subprocess.Popen([sys.executable, "-m", "pccl.master", "--listen-address", address]) as process:
        try:
            yield address
        finally:
            process.terminate()
