"""What a round costs each of a hundred peers while some come and some go, and what following a long log costs: simulated.

Counted, not timed: messages and bytes are those of the machine that ships, on a simulated network. CPU seconds are this
process's, for all peers together, and include the simulation.

    python bench/swarm.py
    python bench/swarm.py --peers 30 --rounds 5 --profile open --json swarm.json
    python bench/swarm.py --only folding
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from measure import process
from measure.themes import Bound

from barnraise.identity import Identity
from barnraise.ids import PeerId
from barnraise.sim.crowd import KINDS, Crowd, Flow, RoundFigures
from barnraise.sim.footprint import footprint_bytes
from barnraise.sim.history import Growth, Profile, certify, draw_log, founded, names
from barnraise.sim.node import sign, verify
from barnraise.swarm import records
from barnraise.swarm.adopt import adopt
from barnraise.swarm.state import State, follow

PROFILES: Final[tuple[Profile, ...]] = ("home", "open")
VOTES_GOAL: Final = Bound(at_most=1.5e6)
"""Bytes of votes that a peer of a hundred sends in a round, and gets."""
SIZES: Final = (125, 250, 500, 1000)
HISTORY_ROUNDS: Final = 2000
SLICES: Final = 4
"""The long log is timed in so many parts: the last must not take longer than the first."""
REAL_MEMBERS: Final = 10


class Share(NamedTuple):
    """What one kind of message came to in a round, for one peer."""

    messages: float
    sent_bytes: float
    most_sent_bytes: float
    most_got_bytes: float

    @classmethod
    def of(cls, flow: Flow, num_members: int) -> "Share":
        """Return the mean over the members, and the most that any peer sent and got."""
        sent, got = flow.sent_bytes.values(), flow.got_bytes.values()
        return cls(
            flow.num_messages / num_members, flow.size_bytes / num_members, max(sent, default=0), max(got, default=0)
        )


# ---- a crowd ------------------------------------------------------------------------------------------------------


def crowd(profile: Profile, peers: int, rounds: int, churn: float, seed: int) -> list[dict[str, Any]]:
    """Run a crowd and print what its rounds came to."""
    world = Crowd(seed=seed, num_peers=peers, rounds=rounds, churn=churn, profile=profile)
    world.run()
    print(f"\n{profile}: {peers} peers, {churn:.0%} of them go in a round and as many come; seed {seed}")
    print(
        f"{'round':>5} {'members':>8} {'+':>3} {'-':>3} {'voids':>6} {'passed':>7} {'time s':>7} {'CPU s':>6} "
        f"{'CPU ms/peer':>12} {'memory kB':>10} {'shards':>7} {'messages':>9} {'kB sent':>9}"
    )
    rows = [_row(figures) for figures in world.figures()]
    for row in rows:
        print(
            f"{row['round']:>5} {row['members']:>8} {row['joined']:>3} {row['left']:>3} {row['voids']:>6} "
            f"{row['passed_over']:>7} {row['simulated_s']:>7.1f} {row['cpu_s']:>6.1f} {row['peer_cpu_ms']:>12.1f} "
            f"{row['member_bytes'] / 1e3:>10.0f} {row['shards']:>7} {row['messages']:>9.0f} {row['sent_bytes'] / 1e3:>9.0f}"
        )
    _print_kinds(rows)
    return rows


def _row(figures: RoundFigures) -> dict[str, Any]:
    members = figures.num_members
    shares = {kind: Share.of(figures.flows[kind], members) for kind in KINDS} | {
        "votes": Share.of(figures.votes, members)
    }
    return {
        "round": figures.round,
        "members": members,
        "joined": figures.num_joined,
        "left": figures.num_left,
        "voids": figures.num_voids,
        "passed_over": figures.num_passed_over,
        "withheld": figures.num_withheld,
        "simulated_s": figures.simulated_s,
        "cpu_s": figures.cpu_s,
        "peer_cpu_ms": 1e3 * figures.cpu_s / members,
        "member_bytes": figures.member_bytes,
        "shards": figures.num_shards / members,
        "messages": sum(shares[kind].messages for kind in KINDS),
        "sent_bytes": sum(shares[kind].sent_bytes for kind in KINDS),
        "kinds": {kind: share._asdict() for kind, share in shares.items()},
    }


def _print_kinds(rows: Sequence[dict[str, Any]]) -> None:
    """Print the kinds of messages, of the middle round and of the worst one."""
    print(
        f"\n{'each peer and round':<22} {'messages':>9} {'kB sent':>9} {'worst round':>12} {'most sent':>10} {'most got':>10}"
    )
    for kind in (*KINDS, "votes"):
        shares = [row["kinds"][kind] for row in rows]
        means = sorted(share["sent_bytes"] for share in shares)
        messages = sorted(share["messages"] for share in shares)[len(shares) // 2]
        most_sent, most_got = (max(share[name] for share in shares) for name in ("most_sent_bytes", "most_got_bytes"))
        print(
            f"{kind:<22} {messages:>9.1f} {means[len(means) // 2] / 1e3:>9.1f} {means[-1] / 1e3:>12.1f} "
            f"{most_sent / 1e3:>10.1f} {most_got / 1e3:>10.1f}"
        )
    smooth = [row for row in rows if not row["voids"] and not row["passed_over"]]
    if smooth:
        worst = max(row["kinds"]["votes"]["sent_bytes"] for row in smooth)
        print(
            f"votes a peer sends in a round of one cut and one result: {worst / 1e6:.2f} MB, {VOTES_GOAL.verdict(worst)};"
        )
        print("after a void it votes on both once more")


# ---- folding ------------------------------------------------------------------------------------------------------


class Fold(NamedTuple):
    """What following one entry cost."""

    kind: str
    cpu_s: float
    size_bytes: int
    state: State


def folds(first: State, rounds: int, growth: Growth) -> Iterator[Fold]:
    """Draw a log and follow it from its bytes; only that is timed."""
    state = first
    for event, _ in draw_log(random.Random(1), first, rounds=rounds, growth=growth):
        data = records.encode(event)
        begin = time.process_time()
        state, _ = follow(state, records.decode_event.decode(data))
        cpu_s = time.process_time() - begin
        yield Fold(type(event).__name__, cpu_s, len(data), state)


def by_members() -> list[dict[str, Any]]:
    """Print what an entry costs by the number of members."""
    print(
        f"\nFolding, by members: {'cut us':>8} {'result us':>10} {'us/member':>10} {'cut kB':>8} {'state kB':>9} {'B/member':>9}"
    )
    rows = []
    for members in SIZES:
        taken = list(folds(founded(names(members)), 20, Growth(target=members)))
        state = taken[-1].state
        cut, result = (_mean([fold.cpu_s for fold in taken if fold.kind == kind]) for kind in ("Cut", "Result"))
        cut_bytes = _mean([fold.size_bytes for fold in taken if fold.kind == "Cut"])
        state_bytes = weight(state)
        row = {"members": members, "cut_s": cut, "result_s": result, "cut_bytes": cut_bytes, "state_bytes": state_bytes}
        rows.append(row)
        print(
            f"{members:>20} {cut * 1e6:>8.0f} {result * 1e6:>10.0f} {(cut + result) / members * 1e6:>10.2f} "
            f"{cut_bytes / 1e3:>8.1f} {state_bytes / 1e3:>9.1f} {state_bytes / members:>9.0f}"
        )
    ratio = (rows[-1]["result_s"] + rows[-1]["cut_s"]) / (rows[0]["result_s"] + rows[0]["cut_s"])
    print(f"{SIZES[-1] / SIZES[0]:.0f} times the members take {ratio:.1f} times as long")
    return rows


class Slice(NamedTuple):
    """Some rounds of a long log."""

    until_round: int
    members: int
    round_s: float
    log_bytes: float
    state_bytes: int

    @classmethod
    def of(cls, part: Iterator[Fold]) -> "Slice":
        """Return what a round of them cost on average."""
        count, cpu_s, size_bytes = 0, 0.0, 0
        for fold in part:
            count, cpu_s, size_bytes = count + (fold.kind == "Result"), cpu_s + fold.cpu_s, size_bytes + fold.size_bytes
        last = fold.state
        return cls(last.round, len(last.members), cpu_s / count, size_bytes / count, weight(last))


def by_history(members: int, rounds: int) -> list[dict[str, Any]]:
    """Print what a round's entries cost as the log grows: as much at its end as when the run had just grown."""
    growth = Growth(target=members, joining=max(1, members // 20))
    length = -(-rounds // SLICES)
    print(f"\nFolding, by history: {'members':>8} {'ms/round':>9} {'log kB/round':>13} {'state kB':>9}")
    slices = []
    taken = folds(founded(names(members // 10)), rounds, growth)
    for _, part in groupby(taken, key=lambda fold: (fold.state.round - (fold.kind == "Result")) // length):
        done = Slice.of(part)
        slices.append(done)
        print(
            f"to round {done.until_round:>10}: {done.members:>8} {done.round_s * 1e3:>9.2f} "
            f"{done.log_bytes / 1e3:>13.1f} {done.state_bytes / 1e3:>9.1f}",
            flush=True,
        )
    print(
        f"a round of the last part takes {slices[-1].round_s / slices[1].round_s:.2f} times as long as one of the second"
    )
    return [done._asdict() for done in slices]


def by_signature() -> dict[str, float]:
    """Print what checking a decision's votes costs, with ideal signatures and with real ones."""
    identities = {identity.peer_id: identity for identity in (Identity.generate() for _ in range(REAL_MEMBERS))}

    def sign_as(peer: PeerId, context: str, message: bytes) -> bytes:
        return identities[peer].sign(context, message)

    def verify_of(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        return identities[peer].public.verify(context, message, signature)

    first, growth = founded(list(identities), profile="open"), Growth(target=REAL_MEMBERS, churn=0.0, mishaps=0.0)
    taken = {}
    for name, signing, verifying in (("ideal", sign, verify), ("real", sign_as, verify_of)):
        before, log = first, []
        for event, after in draw_log(random.Random(1), first, rounds=10, growth=growth):
            log.append(certify(before, event, signing))
            before = after
        begin = time.process_time()
        adopt(first, log, verifying)
        taken[name] = (time.process_time() - begin) / len(log)
    votes = len(log[0].votes)
    taken["real_vote"] = (taken["real"] - taken["ideal"]) / votes
    print(
        f"\nFollowing a certified log of {REAL_MEMBERS} members, {votes} votes an entry: ideal signatures {taken['ideal'] * 1e3:.2f} ms"
    )
    print(f"an entry, real ones {taken['real'] * 1e3:.2f} ms: {taken['real_vote'] * 1e6:.0f} us a vote")
    return taken


def weight(state: State) -> int:
    """Return a state's bytes, without the run's configuration."""
    return footprint_bytes(state, beside=[state.config, state.agreement])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--churn", type=float, default=0.05, help="share of the members that goes in a round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", choices=PROFILES, help="only this one")
    parser.add_argument("--members", type=int, default=1000, help="members of the long log")
    parser.add_argument("--history", type=int, default=HISTORY_ROUNDS, help="rounds of the long log")
    parser.add_argument("--only", choices=("crowd", "folding"))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"simulated": True, "machine": process.machine()}
    if arguments.only != "folding":
        for profile in [arguments.profile] if arguments.profile else PROFILES:
            figures[profile] = crowd(profile, arguments.peers, arguments.rounds, arguments.churn, arguments.seed)
    if arguments.only != "crowd":
        figures |= {"by_members": by_members(), "by_history": by_history(arguments.members, arguments.history)}
        figures["by_signature"] = by_signature()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
