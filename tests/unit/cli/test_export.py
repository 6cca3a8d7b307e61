"""`export` and `generate` on a run's directory as peers leave it; one process of the trainer's side, the rest in this one."""

import contextlib
import importlib
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from barnraise import cli
from barnraise.cli import errand
from barnraise.config import ModelConfig
from barnraise.dag import proof
from barnraise.dag.store import Store
from barnraise.errors import ConfigError, LocalError
from barnraise.link.messages import Tensor
from barnraise.model.tensors import save_tensors
from barnraise.swarm import records

from .agreed_run import agreed_run, trained

Here = Callable[[], contextlib.AbstractContextManager[None]]
Said = pytest.CaptureFixture[str]


@pytest.fixture
def in_this_process() -> Here:
    """Return a context in which the trainer's side is called here, with the same words: torch takes long to load."""

    @contextlib.contextmanager
    def called() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "run", call_here)
            yield

    return called


def call_here(command: list[str], **how: object) -> subprocess.CompletedProcess[bytes]:
    """Stand in for `subprocess.run` of ``python -P -m module words``."""
    assert command[:3] == [sys.executable, "-P", "-m"]
    assert how["stdin"] == subprocess.DEVNULL
    module, *words = command[3:]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [module, *words])
        code = importlib.import_module(module).main()
    return subprocess.CompletedProcess(command, code, out.getvalue().encode(), err.getvalue().encode())


def test_a_run_is_exported_and_both_continue_a_text_alike(
    in_this_process: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    path = agreed_run(tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "out"]) == 0
    said = capsys.readouterr().out
    assert f"transformers.AutoModelForCausalLM.from_pretrained('{tmp_path / 'out'}')" in said
    assert "after 3 rounds" in said
    assert "1 of 1 members; check it: barnraise verify out" in said

    words = ["generate", "--prompt", "-To be", "--bytes", "40", "--seed", "3", "--from"]
    with in_this_process():
        assert cli.main([*words, "out", "--json"]) == 0
        text = json.loads(capsys.readouterr().out)
        assert text["prompt"] == "-To be"
        assert text["text"].startswith("-To be")
        assert cli.main([*words, str(path / "peer-0")]) == 0
        assert capsys.readouterr().out == text["text"] + "\n"


def test_a_model_of_the_users_own_takes_its_names_from_the_peers_directory(
    in_this_process: Here, tmp_path: Path, capsys: Said
) -> None:
    path = agreed_run(tmp_path / "run", ModelConfig(architecture="custom"), np.arange(10, dtype=np.float32))
    layout = (Tensor("body.weight", (2, 4)), Tensor("body.running_mean", (2,), True))
    (path / "peer-0" / "layout.msgpack").write_bytes(msgspec.msgpack.encode(layout))
    with in_this_process():
        assert cli.main(["export", str(tmp_path / "out"), "--from", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with contextlib.closing(Store.read(path / "peer-0" / "log.sqlite")) as reader:
        assert found["vertex"] == records.vertex_id(reader.vertices(1)[0]).hex()
    assert (found["rounds"], found["architecture"], found["num_parameters"]) == (3, "custom", 10)
    assert found["files"] == ["README.md", "certificate.barnraise", "model.safetensors"]
    assert found["certificate"] == str(tmp_path / "out" / "certificate.barnraise")
    assert load_file(tmp_path / "out" / "model.safetensors")["body.running_mean"].tolist() == [8, 9]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", ""], "--prompt must have"),
        (["--prompt", "x" * 100_001], "--prompt must have"),
        (["--prompt", "x", "--bytes", "0"], "--bytes 0 is outside"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature -1.0 is outside"),
        (["--prompt", "x", "--temperature", "nan"], "--temperature nan is outside"),
        (["--prompt", "x", "--from", "nowhere"], "nowhere: no peer keeps its data there"),
        ([], "prompt"),
    ],
)
def test_what_cannot_be_asked_is_said(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_errand_that_fails_says_why() -> None:
    with pytest.raises(ConfigError, match="Unknown command"):
        errand.run("barnraise", ["nonsense"], str)
    with pytest.raises(LocalError, match=r"failed with exit code 1: .*no\.such"):
        errand.run("no.such.module", [], str)
    with pytest.raises(LocalError, match="said something else"):
        errand.run("this", [], str)


def test_what_nobody_agreed_on_is_not_used(in_this_process: Here, tmp_path: Path, capsys: Said) -> None:
    path = agreed_run(tmp_path / "run")
    with sqlite3.connect(path / "peer-0" / "log.sqlite") as connection:
        connection.execute("UPDATE log SET view = 1 WHERE height = 5")
    connection.close()
    for words in (["export", str(tmp_path / "out")], ["generate", "--prompt", "x"]):
        with in_this_process():
            assert cli.main([*words, "--from", str(path)]) == 1
        assert "the 1 votes at height 5 do not certify it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_damaged_is_not_used(in_this_process: Here, tmp_path: Path, capsys: Said) -> None:
    path = agreed_run(tmp_path / "run")
    (blob,) = (path / "peer-0" / "blobs").iterdir()
    trained()[::-1].tofile(blob)
    with in_this_process():
        assert cli.main(["export", str(tmp_path / "out"), "--from", str(path)]) == 1
    assert "is not what the members agreed on" in capsys.readouterr().err


def test_a_model_is_exported_even_where_its_certificate_would_be_too_large(
    in_this_process: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    path = agreed_run(tmp_path / "run")
    monkeypatch.setattr(proof, "MAX_PROOF_BYTES", 1000)
    with in_this_process():
        assert cli.main(["export", str(tmp_path / "out"), "--from", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["certificate"] is None
    assert "the members changed too often" in found["uncertified"]
    assert not (tmp_path / "out" / "certificate.barnraise").exists()
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_an_exported_model_that_was_changed_does_not_write(in_this_process: Here, tmp_path: Path, capsys: Said) -> None:
    path, out = agreed_run(tmp_path / "run"), tmp_path / "out"
    with in_this_process():
        assert cli.main(["export", str(out), "--from", str(path)]) == 0
        tensors = load_file(out / "model.safetensors")
        tensors["lm_head.weight"][0, 0] += 1
        save_tensors(tensors, out / "model.safetensors")
        assert cli.main(["generate", "--prompt", "x", "--from", str(out)]) == 1
    assert "it is another model, or was changed" in capsys.readouterr().err
