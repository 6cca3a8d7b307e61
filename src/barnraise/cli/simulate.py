"""``barnraise simulate``: tries to break agreement, thousands of times, and says how to see again what broke it."""

import sys
import time
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from barnraise.cli.page import Json, print_json, print_table
from barnraise.errors import ConfigError
from barnraise.sim.agreement import simulate as run_trial
from barnraise.sim.campaign import Findings, Plan, campaign, hunt
from barnraise.sim.mutants import MUTANTS
from barnraise.sim.schedules import draw, num_faulty
from barnraise.sim.witness import Violation

FLAG: Final = Parameter(negative="", show_default=False)
OPTIONAL: Final = Parameter(show_default=False)
MAX_PEERS: Final = 100
DEFAULT_SEEDS: Final = 1000
HUNTED_SEEDS: Final = 20_000
PROGRESS_S: Final = 60.0


def simulate(
    *,
    seeds: Annotated[int | None, OPTIONAL] = None,
    peers: int = 7,
    protocol: Literal["pbft", "raft"] = "pbft",
    first: int = 0,
    seed: Annotated[int | None, OPTIONAL] = None,
    verbose: Annotated[bool, FLAG] = False,
    traitors: Annotated[int | None, OPTIONAL] = None,
    mutants: Annotated[bool, FLAG] = False,
    mutant: Annotated[str | None, OPTIONAL] = None,
    hours: Annotated[float | None, OPTIONAL] = None,
    jobs: int = 1,
    json: Json = False,
) -> int:
    """Run the agreement of this program in simulated worlds, and check after every step that it keeps its promises.

    Each world is drawn from a seed: messages are delayed, lost, doubled and reordered, the network splits and heals,
    peers crash and come back with what was on their disks, and as many as the protocol bears lie. What is checked: that
    nobody decides otherwise than others, that what is decided is valid and certified, that nothing decided is lost, that
    no honest peer is blamed, that memory and messages are bounded, and that all is decided soon once the network heals.

    Args:
        seeds: How many worlds. Default: 1000; with --hours as many as there is time for; 20000 at most for each mutant.
        peers: Members of each of them.
        protocol: pbft, or raft: what a home's machines agree by, which may crash and do not lie.
        first: Seed of the first world.
        seed: Run this one alone.
        verbose: With --seed: tell everything that happens in it.
        traitors: Exactly so many peers lie, and all of them in earnest. One more than pbft bears breaks it.
        mutants: Also put defects into the code, one after the other, to see that they are noticed.
        mutant: Run with this defect.
        hours: Go on for so long.
        jobs: Processes at once.
        json: Print one object.
    """
    _check(peers, protocol, traitors, mutant, seeds=seeds, jobs=jobs)
    plan = Plan(peers=peers, protocol=protocol, mutant=mutant or "", traitors=traitors)
    if seed is not None:
        return _one(plan, seed, verbose=verbose, json=json)
    began_s = time.monotonic()
    count = seeds if seeds is not None else None if hours is not None else DEFAULT_SEEDS
    found = _many(plan, first, count, hours, jobs)
    took_s = time.monotonic() - began_s
    caught = _mutants(peers, first, seeds or HUNTED_SEEDS, jobs) if mutants else []
    if json:
        print_json(_record(found, took_s, caught))
    else:
        _print(found, took_s, caught, plan)
    return 1 if found.violations or any(not row["caught"] for row in caught) else 0


def _check(
    peers: int, protocol: str, traitors: int | None, mutant: str | None, *, seeds: int | None, jobs: int
) -> None:
    """See whether the options fit together.

    Raises:
        ConfigError: they do not.
    """
    least = 4 if protocol == "pbft" else 1
    if not least <= peers <= MAX_PEERS:
        raise ConfigError(f"--peers {peers}: {protocol} agrees among {least} to {MAX_PEERS} here. Give one of those.")
    if mutant is not None and mutant not in MUTANTS:
        raise ConfigError(f"--mutant {mutant}: there is none of that name. There are: {', '.join(MUTANTS)}.")
    if protocol == "raft" and (mutant is not None or traitors is not None):
        raise ConfigError(
            "--protocol raft has no traitors and no mutants here: home's machines do not lie. Leave them out."
        )
    if traitors is not None and not 0 <= traitors < peers:
        raise ConfigError(f"--traitors {traitors}: of {peers} peers at most {peers - 1} can lie. Give fewer.")
    if jobs < 1 or (seeds is not None and seeds < 1):
        raise ConfigError("--seeds and --jobs count from 1. Give at least one.")


def _one(plan: Plan, seed: int, *, verbose: bool, json: bool) -> int:
    """Run one world, and tell what happens in it."""
    tell = _tell if verbose and not json else None
    if tell is not None:
        kind = plan.kind
        _tell(str(draw(seed, plan.peers, num_traitors=plan.traitors, trusts_members=kind.trusts_members)))
    try:
        outcome = run_trial(seed, plan.peers, plan.kind, num_traitors=plan.traitors, tell=tell)
    except Violation as violation:
        if json:
            print_json({"seed": seed, "violation": str(violation), "command": plan.command(seed)})
        else:
            print(f"seed {seed}: {violation}\nagain, with all that happens: {plan.command(seed)} --verbose")
        return 1
    if json:
        print_json({"seed": seed, "violation": None, "took_s": outcome.took_s, "messages": outcome.num_messages})
    else:
        print(
            f"seed {seed}: all promises kept; {outcome.took_s:.1f} simulated seconds, {outcome.num_messages} messages"
        )
    return 0


def _many(plan: Plan, first: int, num_seeds: int | None, hours: float | None, jobs: int) -> Findings:
    total = Findings()
    told_s = time.monotonic()
    for found in campaign(plan, first=first, num_seeds=num_seeds, hours=hours, jobs=jobs):
        total.add(found)
        if time.monotonic() - told_s >= PROGRESS_S:
            told_s = time.monotonic()
            print(f"{total.schedules} worlds, {total.violations} broke a promise", file=sys.stderr, flush=True)
    return total


def _mutants(peers: int, first: int, num_seeds: int, jobs: int) -> list[dict[str, Any]]:
    """Return for each defect whether it was noticed, where, and how much it took."""
    rows = []
    for name, mutant in MUTANTS.items():
        found = hunt(Plan(peers=peers, mutant=name), first=first, num_seeds=num_seeds, jobs=jobs)
        failure = found.failures[0] if found.failures else None
        rows.append(
            {
                "name": name,
                "defect": mutant.says,
                "caught": failure is not None,
                "seed": failure.seed if failure else None,
                "what": failure.what if failure else None,
                "command": failure.command if failure else None,
                "cpu_s": found.cpu_s,
            }
        )
    return rows


def _record(found: Findings, took_s: float, caught: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schedules": found.schedules,
        "per_s": round(found.schedules / took_s, 1),
        "per_cpu_s": round(found.schedules / found.cpu_s, 1),
        "violations": found.violations,
        "failures": [{"seed": f.seed, "what": f.what, "command": f.command} for f in found.failures],
        "events": found.events,
        "messages": found.messages,
        "refused": found.refused,
        "mutants": len(caught),
        "mutants_caught": sum(row["caught"] for row in caught),
        "mutants_found": caught,
    }


def _print(found: Findings, took_s: float, caught: list[dict[str, Any]], plan: Plan) -> None:
    lies = f"{num_faulty(plan.peers)} of {plan.peers} may lie" if plan.protocol == "pbft" else "nobody lies"
    rows = [
        ("worlds", f"{found.schedules}", f"{plan.peers} peers, {plan.protocol}, {lies}"),
        ("worlds a second", f"{found.schedules / took_s:.0f}", f"{found.schedules / found.cpu_s:.0f} on one core"),
        ("events", f"{found.events}", f"{found.messages} messages, {found.refused} refused as lies"),
        ("broken promises", f"{found.violations}", "agreement, validity, certificates, durability, bounds, progress"),
    ]
    for row in caught:
        what = f"noticed: {row['what']}" if row["caught"] else "NOT NOTICED"
        rows.append((f"defect {row['name']}", "-" if row["seed"] is None else f"seed {row['seed']}", what))
    print_table(("what", "how many", "which"), rows, numbers=("how many",))
    for failure in found.failures:
        print(f"\nseed {failure.seed}: {failure.what}\n  again: {failure.command} --verbose")


def _tell(text: str) -> None:
    print(text, flush=True)
