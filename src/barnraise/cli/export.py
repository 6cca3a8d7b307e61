"""``barnraise export``: the newest checkpoint of a run as a directory that other programs load."""

import tempfile
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from barnraise.cli import errand
from barnraise.cli.page import Json, print_facts, print_json
from barnraise.config import save
from barnraise.runs import reading
from barnraise.swarm import records

LAYOUT_FILE: Final = "layout.msgpack"
"""In a peer's directory: names and shapes of its trainer's tensors."""
_LOADED_BY: Final = {
    "lfm2": "transformers.AutoModelForCausalLM.from_pretrained({directory!r})",
    "custom": "the program that trained it; README.md there says how",
}


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What the trainer's side says it wrote."""

    directory: str
    architecture: str
    files: list[str]
    num_parameters: int


def export(
    directory: Path,
    /,
    *,
    source: Annotated[Path | None, Parameter(name=("--from", "--dir"), show_default=False)] = None,
    json: Json = False,
) -> int:
    """Write the trained model as a directory: config.json, model.safetensors, tokenizer.json and a README.

    The built-in model loads in transformers as it is; the README that is written says what loads yours.

    Args:
        directory: Where to write; must not be there yet, or be empty.
        source: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        json: Print one object: directory, architecture, files, num_parameters, run, vertex, rounds.
    """
    found = reading.newest_checkpoint(reading.find(source))
    with tempfile.TemporaryDirectory(prefix="barnraise-") as scratch:
        config = Path(scratch) / "run.toml"
        save(found.config, config)
        layout = found.peer_dir / LAYOUT_FILE
        options = ("--config", config, "--theta", found.theta_path, "--to", directory.resolve(), "--layout", layout)
        done = errand.run("barnraise.train.export", options, Exported)
    run, vertex = found.config.run_id.hex(), records.vertex_id(found.vertex).hex()
    if json:
        print_json({**msgspec.to_builtins(done), "run": run, "vertex": vertex, "rounds": found.vertex.round})
        return 0
    print_facts(
        [
            ("checkpoint", f"{vertex} after {found.vertex.round} rounds of run {run[:12]}"),
            ("written to", done.directory),
            ("files", " ".join(done.files)),
            ("parameters", f"{done.num_parameters:,}"),
            ("loaded by", _LOADED_BY[done.architecture].format(directory=done.directory)),
        ]
    )
    return 0
