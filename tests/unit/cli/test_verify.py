"""`verify` on what `export` wrote, on runs and on files by themselves: what it says, and when it says no."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from barnraise import cli
from barnraise.config import ModelConfig
from barnraise.dag import proof
from barnraise.identity import Identity
from barnraise.link.messages import Tensor, layout_digest
from barnraise.model.tensors import save_tensors
from barnraise.runs import certificates, reading
from barnraise.swarm import records
from barnraise.train import export

from ..dag.signed_log import steps_of, with_steps
from .agreed_run import agreed_run, trained

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three machines, ``run``, and what was exported of it, ``out``; only to be looked at."""
    place = tmp_path_factory.mktemp("verify")
    write_out(agreed_run(place / "run", peers=3), place / "out")
    return place


def write_out(run: Path, out: Path) -> None:
    """Export, in this process."""
    found = reading.newest_checkpoint(run)
    certificate = out.with_name("scratch") / proof.FILE_NAME
    certificate.parent.mkdir()
    certificate.write_bytes(proof.encode(certificates.certified(found)[0]))
    export.export(found.config, found.theta_path, out, found.peer_dir / certificates.LAYOUT_FILE, certificate)


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of what was exported, to be spoilt."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def said(capsys: Said, *words: object) -> tuple[int, str]:
    code = cli.main([str(word) for word in ("verify", *words)])
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def ids(run: Path) -> tuple[str, str]:
    found = reading.newest_checkpoint(run)
    return found.config.run_id.hex(), records.vertex_id(found.vertex).hex()


def test_what_was_exported_is_certified(made: Path, capsys: Said) -> None:
    run, vertex = ids(made / "run")
    code, out = said(capsys, made / "out")
    assert code == 0
    first, *facts = out.splitlines()
    assert (
        first == f"Certified by 2 of 3 members in round 3 of run {run[:12]}; the model in model.safetensors is the one."
    )
    rows = [(line[:13].strip(), line[13:].strip()) for line in facts]
    assert ("checkpoint", vertex) in rows
    assert ("of run", run) in rows
    assert sum(name == "signed by" for name, _ in rows) == 2
    assert "crash faults only" in dict(rows)["agreed by"]
    unchecked = [text for name, text in rows if name == "not checked"]
    assert any("--run ID" in text for text in unchecked)
    assert any("config.json" in text for text in unchecked)


def test_a_program_is_told_all_of_it(made: Path, capsys: Said) -> None:
    run, vertex = ids(made / "run")
    code, out = said(capsys, made / "out" / proof.FILE_NAME, "--run", run, "--vertex", vertex, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["certified"], found["run"], found["vertex"], found["round"]) == (True, run, vertex, 3)
    assert (found["protocol"], found["members"], len(found["signers"])) == ("raft", 3, 2)
    assert found["model_file"] == str(made / "out" / "model.safetensors")
    assert found["pinned"] == ["run", "vertex"]
    assert not any("--run ID" in text for text in found["unchecked"])


@pytest.mark.parametrize("directory", ["run", "run/peer-0"])
def test_a_run_and_a_peer_are_certified_by_their_own_log(made: Path, directory: str, capsys: Said) -> None:
    code, out = said(capsys, made / directory, "--json")
    found = json.loads(out)
    assert (code, found["vertex"]) == (0, ids(made / "run")[1])
    assert found["model_file"].endswith(found["model"])


def test_an_older_checkpoint_of_a_run_is_named_by_its_id(made: Path, capsys: Said) -> None:
    with reading.opened(made / "run" / "peer-0") as reader:
        oldest = reader.vertices()[-1]
    code, out = said(capsys, made / "run", "--vertex", records.vertex_id(oldest).hex(), "--json")
    assert (code, json.loads(out)["round"]) == (0, 1)


def test_without_a_model_nothing_is_said_of_one(made: Path, tmp_path: Path, capsys: Said) -> None:
    shutil.copy(made / "out" / proof.FILE_NAME, tmp_path / "some.barnraise")
    code, out = said(capsys, tmp_path / "some.barnraise")
    assert code == 0
    assert "the model in" not in out
    assert "name its file: --model FILE" in out


@pytest.mark.parametrize("kind", ["blob", "safetensors"])
def test_a_model_elsewhere_is_named(made: Path, kind: str, tmp_path: Path, capsys: Said) -> None:
    shutil.copy(made / "out" / proof.FILE_NAME, tmp_path / "some.barnraise")
    (blob,) = (made / "run" / "peer-0" / "blobs").iterdir()
    model = blob if kind == "blob" else made / "out" / "model.safetensors"
    code, out = said(capsys, tmp_path / "some.barnraise", "--model", model)
    assert (code, f"the model in {model.name} is the one" in out) == (0, True)
    trained()[::-1].tofile(tmp_path / "other")
    code, out = said(capsys, tmp_path / "some.barnraise", "--model", tmp_path / "other")
    assert (code, "it is another model, or was changed" in out) == (1, True)


def test_a_model_that_was_changed_is_not_the_one(out: Path, capsys: Said) -> None:
    tensors = load_file(out / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_tensors(tensors, out / "model.safetensors")
    code, text = said(capsys, out)
    assert code == 1
    assert text.startswith("NOT certified:")
    assert "it is another model, or was changed" in text
    tensors["model.embedding_norm.weight"] += 1
    save_tensors(tensors, out / "model.safetensors")
    code, text = said(capsys, out, "--json")
    assert (code, json.loads(text)["certified"]) == (1, False)
    assert "is not what was made of the run's parameters" in json.loads(text)["reason"]


def test_a_vote_that_was_changed_does_not_count(out: Path, capsys: Said) -> None:
    file = out / proof.FILE_NAME
    found = proof.read(file)
    (step,) = steps_of(found)
    place, signature = step.votes[1]
    votes = (step.votes[0], (place, signature[:-1] + bytes([signature[-1] ^ 1])))
    file.write_bytes(proof.encode(with_steps(found, [msgspec.structs.replace(step, votes=votes)])))
    code, text = said(capsys, out)
    assert (code, "the 2 votes at height 5 do not certify it, with 3 voters" in text) == (1, True)


@pytest.mark.parametrize("flag", ["--run", "--vertex"])
def test_a_pin_that_does_not_fit_is_told(made: Path, flag: str, capsys: Said) -> None:
    code, text = said(capsys, made / "out", flag, "ab" * 32)
    assert (code, f"and not of {'ab' * 32}" in text) == (1, True)


def test_what_cannot_be_checked_is_a_wrong_use(made: Path, tmp_path: Path, capsys: Said) -> None:
    for words in (
        [str(made / "out"), "--run", "abcd"],
        [str(made / "out"), "--vertex", "xyz"],
        [str(tmp_path / "nowhere")],
        [str(tmp_path)],
        [str(made / "run"), "--vertex", "ab" * 32],
    ):
        assert cli.main(["verify", *words]) == 2, words
        assert capsys.readouterr().out == ""


def test_a_damaged_blob_of_a_peer_is_told(tmp_path: Path, capsys: Said) -> None:
    run = agreed_run(tmp_path / "run")
    (blob,) = (run / "peer-0" / "blobs").iterdir()
    blob.write_bytes(bytes(8))
    code, text = said(capsys, run)
    assert (code, "is damaged" in text) == (1, True)


def test_a_model_of_the_users_own_goes_with_its_layout(tmp_path: Path, capsys: Said) -> None:
    layout = (Tensor("body.weight", (2, 4)), Tensor("body.running_mean", (2,), True))
    for fixed in ("", layout_digest(layout)):
        place = tmp_path / f"of-{fixed}"
        model = ModelConfig(architecture="custom", layout=fixed)
        run = agreed_run(place / "run", model, np.arange(10, dtype=np.float32))
        (run / "peer-0" / certificates.LAYOUT_FILE).write_bytes(msgspec.msgpack.encode(layout))
        write_out(run, place / "out")
        code, text = said(capsys, place / "out")
        assert (code, "the model in model.safetensors is the one" in text) == (0, True)
        assert ("which number belongs to which tensor" in text) == (not fixed)


def test_the_keys_of_those_who_left_are_found_in_what_a_peer_wrote_down(tmp_path: Path) -> None:
    run = agreed_run(tmp_path / "run", peers=3)
    known = certificates.identities(run / "peer-0")
    own = Identity.load(run / "peer-0" / "identity.key").peer_id
    lines = [identity.hex() for peer, identity in known.items() if peer != own]
    voters = run / "peer-0" / certificates.VOTERS_FILE
    voters.write_text(f"cut sho\n{lines[0]}\nabcd\n", "ascii")
    for index in (1, 2):
        shutil.rmtree(run / f"peer-{index}")
    found = reading.newest_checkpoint(run)
    assert len(certificates.certified(found)[1].signers) == 2
    voters.unlink()
    with pytest.raises(proof.NotCertified, match="the keys of 1 of those who voted"):
        certificates.certified(found)


def test_a_log_of_many_pages_is_read_to_its_end(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "PAGE_ENTRIES", 2)
    found = reading.newest_checkpoint(made / "run")
    assert certificates.certified(found)[1].height == 5


def test_it_loads_no_torch(made: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from barnraise import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "verify", made / "out"]  # whoever imports it fails
    assert b"is the one" in subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
