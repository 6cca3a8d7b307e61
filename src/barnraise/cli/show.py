"""``barnraise show``: one checkpoint in full, checked against the files and the votes that this machine has."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from barnraise.cli.log import bits
from barnraise.cli.page import Directory, Json, print_facts, print_json, readable
from barnraise.dag import proof
from barnraise.dag.proof import Certified, NotCertified
from barnraise.errors import ConfigError, LocalError
from barnraise.observe.figures import count, measured
from barnraise.runs import certificates, reading
from barnraise.swarm import records
from barnraise.swarm.records import MICRO, Vertex

LATEST: Final = "latest"
_HELD: Final = {True: "here, and what its name says", False: "here, but damaged", None: "not kept here any more"}


def show(
    vertex: Annotated[str, Parameter(show_default=False)] = LATEST,
    /,
    *,
    directory: Directory = None,
    json: Json = False,
) -> int:
    """Show one checkpoint: where it comes from, who contributed, who signed, and what of it is here and whole.

    Args:
        vertex: The checkpoint's id, or the first characters of it; default: the newest.
        directory: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        json: Print one object; ids and hashes as hex digits, losses in micro-nats per byte as they were agreed. In
            "signers" are those whose votes hold; "uncertified" says why they are not enough, where they are not.
    """
    path = reading.find(directory)
    home = reading.farthest(path)
    record = _found(home, vertex)
    ident = records.vertex_id(record)
    signed = _certified(home, record)
    held = {name: _held(path, getattr(record, name)) for name in ("model", "outer")}
    if json:
        signers, reason = (signed.signers, "") if isinstance(signed, Certified) else ((), signed)
        about = {"id": ident.hex(), "signers": signers, "uncertified": reason, "peer_dir": str(home), "held": held}
        print_json({**about, **readable(record)})
    else:
        print_facts(_facts(record, ident.hex(), signed, held))
    return 0


def _certified(home: Path, record: Vertex) -> Certified | str:
    """Return what the log that led to a checkpoint shows, or why it does not show that the members agreed on it."""
    try:
        return proof.check(certificates.prove(home, record))
    except (NotCertified, LocalError) as error:
        return str(error)


def _found(home: Path, wanted: str) -> Vertex:
    """Return the checkpoint that ``wanted`` names.

    Raises:
        ConfigError: none, or several.
    """
    with reading.opened(home) as reader:
        known = reader.vertices()
    if wanted == LATEST:
        matching = known[:1]
    else:
        matching = [vertex for vertex in known if records.vertex_id(vertex).hex().startswith(wanted.lower())]
    if len(matching) == 1:
        return matching[0]
    if not known:
        raise ConfigError(f"{home}: holds no checkpoint yet. Wait until a round is agreed; barnraise status tells.")
    raise ConfigError(f"{wanted} names {len(matching)} of {len(known)} checkpoints. barnraise log lists them.")


def _held(path: Path, name: bytes) -> bool | None:
    """Tell whether any peer of this machine has a vector, and whole: True before False before None."""
    found = {reading.holds(home, name) for home in reading.peer_directories(path)}
    return True if True in found else False if False in found else None


def _facts(vertex: Vertex, ident: str, signed: Certified | str, held: dict[str, bool | None]) -> list[tuple[str, str]]:
    exponents = sorted(set(vertex.exponents))
    requeued = sum(number for _, number in vertex.requeued)
    facts: list[tuple[str, Any]] = [
        ("checkpoint", ident),
        ("of run", vertex.run.hex()),
        ("rounds behind it", vertex.round),
        ("agreed", f"{datetime.fromtimestamp(vertex.time):%Y-%m-%d %H:%M:%S}, by the clock of who proposed it"),
        *(("comes from", parent.hex()) for parent in vertex.parents),
        ("parameters", f"{vertex.model.hex()} ({_HELD[held['model']]})"),
        ("outer optimiser", f"{vertex.outer.hex()} ({_HELD[held['outer']]})"),
        *(("contributed", f"{member}, {count(samples)} samples") for member, samples in vertex.contributors),
        *_signatures(signed),
        ("samples so far", f"{count(vertex.total_samples)}; next {count(vertex.cursor)}, again {count(requeued)}"),
        ("train loss", f"{measured(vertex.train_loss / MICRO)} nats per byte"),
        ("held-out", f"{measured(bits(vertex.validation_loss))} bits per byte, of the parameters before the round"),
        ("seed of the next round", vertex.random.hex()),
        ("grid", ", ".join(f"2**-{exponent}" for exponent in exponents)),
    ]
    return [(name, str(value)) for name, value in facts]


def _signatures(signed: Certified | str) -> list[tuple[str, str]]:
    if not isinstance(signed, Certified):
        return [("NOT certified", signed)]
    of = f"{len(signed.signers)} of {len(signed.committee)} members, by {signed.protocol}; their votes hold"
    return [("certified by", of), *(("voted for by", signer) for signer in signed.signers)]
