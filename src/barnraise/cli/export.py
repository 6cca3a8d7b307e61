"""``barnraise export``: the newest checkpoint of a run as a directory that other programs load."""

import tempfile
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from barnraise.cli import errand
from barnraise.cli.page import Json, print_facts, print_json
from barnraise.config import save
from barnraise.dag import proof
from barnraise.dag.proof import NotCertified, Proof
from barnraise.runs import certificates, reading, unsealing

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
    """Write the trained model as a directory: config.json, model.safetensors, tokenizer.json, a README, a certificate.

    The built-in model loads in transformers as it is; the README that is written says what loads yours. From the
    certificate anybody can tell, offline, that the run's members agreed on it: `barnraise verify DIRECTORY`.

    Args:
        directory: Where to write; must not be there yet, or be empty.
        source: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        json: Print one object: directory, architecture, files, num_parameters, run, vertex, rounds, signers,
            certificate (its file; null where it would be too large, and "uncertified" says so).
    """
    found = reading.newest_checkpoint(reading.find(source))
    shown, certified = certificates.certified(found)
    certificate, too_large = _encoded(shown)
    plain = unsealing.plain(found.peer_dir, found.theta_path)
    with plain as theta, tempfile.TemporaryDirectory(prefix="barnraise-") as scratch:
        config = Path(scratch) / "run.toml"
        save(found.config, config)
        layout = found.peer_dir / certificates.LAYOUT_FILE
        options: list[str | Path] = [
            "--config",
            config,
            "--theta",
            theta,
            "--to",
            directory.resolve(),
            "--layout",
            layout,
        ]
        if certificate is not None:
            (Path(scratch) / proof.FILE_NAME).write_bytes(certificate)
            options += ["--certificate", Path(scratch) / proof.FILE_NAME]
        done = errand.run("barnraise.train.export", options, Exported)
    if json:
        about = {"run": certified.run.hex(), "vertex": certified.name.hex(), "rounds": certified.vertex.round}
        file = None if certificate is None else str(directory.resolve() / proof.FILE_NAME)
        proved = {"signers": certified.signers, "certificate": file, "uncertified": too_large}
        print_json({**msgspec.to_builtins(done), **about, **proved})
        return 0
    signed = f"{len(certified.signers)} of {len(certified.committee)} members; check it: barnraise verify {directory}"
    print_facts(
        [
            ("checkpoint", certified.name.hex()),
            ("of run", f"{certified.run.hex()} after {certified.vertex.round} rounds"),
            ("certified by", too_large or signed),
            ("written to", done.directory),
            ("files", " ".join(done.files)),
            ("parameters", f"{done.num_parameters:,}"),
            ("loaded by", _LOADED_BY[done.architecture].format(directory=done.directory)),
        ]
    )
    return 0


def _encoded(shown: Proof) -> tuple[bytes | None, str]:
    """Return the certificate's bytes; or why there are none, since a model is worth having without them."""
    try:
        return proof.encode(shown), ""
    except NotCertified as error:
        return None, f"nobody in the files: {error}"
