"""How fast a checkpoint comes from several donors: beside one donor, over links of a quarter of the rate each.

    python bench/blobs.py                                  1 GB, four donors behind links of 200 Mbit/s, three turns
    python bench/blobs.py --mbytes 100 --json blobs.json

METHODOLOGY.md says what each figure is and how it is taken.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import trio
from measure import process
from measure.donors import KEY, Donor, donors, identity, lacking, places

from barnraise.dag.blobs import Blobs
from barnraise.dag.depot import Depot
from barnraise.dag.download import Wanted
from barnraise.errors import BarnraiseError, LocalError
from barnraise.ids import PeerId
from barnraise.net.bulk import SealedBulk, open_bulk
from barnraise.swarm.workspace import root_of

AT_LEAST: Final = 0.75
"""Times the number of donors: four are to be three times as fast as one."""

Turn = dict[str, Any]


def main() -> int:
    """Measure, print, and write the figures; return 1 if the measurement failed, whatever the figures are 0."""
    given = _parser().parse_args()
    process.require_proc()
    why = "asked for" if given.in_donor else lacking()
    if why:
        print(f"the donors limit themselves, on loopback: {why}")
    try:
        turns = trio.run(_measure, given, not why)
    except BarnraiseError as error:
        print(f"blobs: {error}", file=sys.stderr)
        return error.exit_code
    figures = _summary(turns, given, not why)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


async def _measure(given: argparse.Namespace, in_kernel: bool) -> list[Turn]:
    """Take turns: from one donor, from all of them."""
    turns: list[Turn] = []
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        home = Path(folder)
        vector = np.random.default_rng(1).standard_normal(int(given.mbytes * 1e6) // 4, np.float32)
        wanted = Wanted(name=root_of(vector), size_bytes=vector.nbytes)
        Blobs(home / "donors").put(vector, wanted.name)
        asker = _Asker()
        with places(given.donors, given.mbit, in_kernel=in_kernel) as at:
            plane = open_bulk(identity(0), KEY, sink=asker.sink, arrived=asker.arrived, host=at.asker)
            async with plane as bulk:
                with donors(at, home / "donors", bulk.address[1]) as found:
                    for donor in found:
                        bulk.learn(donor.peer, donor.host, donor.port)
                    await asker.fetch(bulk, home / "warm-up", wanted, found)  # the donors open and hash their files
                    for _ in range(given.turns):
                        for count in (1, given.donors):
                            turns.append(await asker.fetch(bulk, home / "asker", wanted, found[:count]))
                            print(" ".join(f"{key}={value}" for key, value in turns[-1].items()), flush=True)
    return turns


class _Asker:
    """The peer that fetches, each time into an empty directory."""

    def __init__(self) -> None:
        self._depot: Depot | None = None

    def sink(self, sender: PeerId, data: bytes, size_bytes: int) -> memoryview | None:
        """Hand on to the depot of the turn."""
        return self._depot.sink(sender, data, size_bytes) if self._depot else None

    def arrived(self, sender: PeerId, data: bytes) -> None:
        """Hand on to the depot of the turn."""
        if self._depot is not None:
            self._depot.arrived(sender, data)

    async def fetch(self, bulk: SealedBulk, home: Path, wanted: Wanted, from_: Sequence[Donor]) -> Turn:
        """Fetch the blob, see that it is whole, delete it, and return what it took."""
        accused: list[BarnraiseError] = []
        blobs = Blobs(home)
        self._depot = Depot(blobs, accused.append)
        peers = [donor.peer for donor in from_]
        cpu, began = time.process_time(), time.perf_counter()
        came = await self._depot.fetch(bulk, [wanted], lambda: peers)
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        if accused or blobs.find(wanted.name) is None:
            raise LocalError(f"what came is not what was asked for: {accused}")
        blobs.path(wanted.name).unlink()
        return {
            "donors": len(peers),
            "took_s": round(took_s, 3),
            "mb_per_s": round(wanted.size_bytes / took_s / 1e6, 1),
            "cpu_s": round(cpu_s, 2),
            "shares": [round(came.get(peer, 0) / wanted.size_bytes, 3) for peer in peers],
        }


def _summary(turns: Sequence[Turn], given: argparse.Namespace, in_kernel: bool) -> dict[str, Any]:
    one, all_ = ([turn["took_s"] for turn in turns if turn["donors"] == count] for count in (1, given.donors))
    ratio = statistics.median(one) / statistics.median(all_)
    target = AT_LEAST * given.donors
    verdict = "holds" if ratio >= target else "DOES NOT HOLD"
    print(f"{given.donors} donors / one: {ratio:.2f} x   >= {target:g} {verdict}")
    return {
        "mbytes": given.mbytes,
        "donors": given.donors,
        "link_mbit": given.mbit,
        "limited_by": "kernel" if in_kernel else "donor",
        "one_s": statistics.median(one),
        "all_s": statistics.median(all_),
        "speedup": round(ratio, 3),
        "turns": list(turns),
        "machine": process.machine(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbytes", type=float, default=1000.0, help="size of the blob")
    parser.add_argument("--donors", type=int, default=4, help="how many, 2 to 100", choices=range(2, 101), metavar="N")
    parser.add_argument("--mbit", type=float, default=200.0, help="each donor's link, Mbit/s")
    parser.add_argument("--turns", type=int, default=3, help="of each kind")
    parser.add_argument("--dir", type=Path, help="where the files go; a temporary directory unless given")
    parser.add_argument(
        "--in-donor", action="store_true", help="let donors limit themselves, even where the kernel can"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
