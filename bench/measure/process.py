"""What the kernel says of a process: CPU seconds and peak memory, from Linux's /proc; nothing is installed for it."""

import contextlib
import os
import platform
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from barnraise.errors import ConfigError

_TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")
_GROUP, _USER_TIME, _SYSTEM_TIME = 2, 11, 12
"""Fields of /proc/PID/stat, counted behind the name in parentheses (proc(5), fields 5, 14 and 15)."""


def require_proc() -> None:
    """Refuse a system without /proc.

    Raises:
        ConfigError: there is none.
    """
    if not Path("/proc/self/stat").is_file():
        raise ConfigError(f"{platform.system()} has no /proc, where CPU and memory are read. Measure on Linux.")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, that a living process has used, its children's not counted."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) * _TICK_S


def group_cpu_s(group: int) -> float:
    """Return the CPU seconds that the living processes of a group have used, and those of their ended children."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[_GROUP]) == group:
                total += sum(map(int, fields[_USER_TIME : _USER_TIME + 4]))
    return total * _TICK_S


def machine_cpu_s() -> float:
    """Return the CPU seconds that all processes of the machine have used since it started."""
    user, nice, system, _idle, _iowait, irq, softirq = Path("/proc/stat").read_text().split()[1:8]
    return sum(map(int, (user, nice, system, irq, softirq))) * _TICK_S


def pause(pids: Iterable[int]) -> None:
    """Stop processes where they are."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def resume(pids: Iterable[int]) -> None:
    """Let stopped processes go on."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def peak_rss_mb(pid: int) -> float:
    """Return the most memory, in 10**6 bytes, that a living process ever had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kib * 1024 / 1e6


def machine() -> dict[str, object]:
    """Return what figures depend on: CPU, cores, memory, versions, and how busy the machine is now."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }
