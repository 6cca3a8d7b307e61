"""`export` and `generate` on a run's directory as peers leave it; one process of the trainer's side, the rest in this one."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from barnraise import cli
from barnraise.cli import errand
from barnraise.config import ModelConfig, RunConfig
from barnraise.dag.blobs import Blobs
from barnraise.dag.store import Store
from barnraise.errors import ConfigError, LocalError
from barnraise.link.messages import Tensor
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.initialise import uniform
from barnraise.runs import directory as rundir
from barnraise.swarm import records
from barnraise.swarm.records import Vertex

TINY = ModelConfig(hidden_size=8, num_layers=2, num_heads=1, max_seq_len=8)
Make = Callable[..., Path]
Here = Callable[[], contextlib.AbstractContextManager[None]]
Said = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Make:
    """Return a maker of runs that have one checkpoint behind them; ``run.path`` below the test's directory."""

    def make(model: ModelConfig, theta: np.ndarray[Any, np.dtype[np.float32]]) -> Path:
        made = rundir.create(RunConfig(model=model), 1, tmp_path / "runs" / model.architecture, datetime(2026, 1, 2))
        assert made.config is not None
        home = made.home(0)
        store, blobs = Store(home / "log.sqlite", made.config.run_id), Blobs(home / "blobs")
        root = blobs.put(theta)
        vertex = Vertex(
            run=made.config.run_id,
            parents=(),
            round=3,
            model=root,
            outer=root,
            random=bytes(32),
            cursor=0,
            requeued=(),
            exponents=(),
            time=0,
            contributors=(),
            total_samples=0,
            train_loss=0,
            validation_loss=-1,
        )
        store.append(0, (), (vertex,), None)
        store.close()
        return made.path

    return make


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


def trained(model: ModelConfig) -> np.ndarray[Any, np.dtype[np.float32]]:
    size = flatten(build(model, 1)).values.numel()
    return uniform(2, "all", (size,), 0.3)


def test_a_run_is_exported_and_both_continue_a_text_alike(
    run: Make, in_this_process: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    path = run(TINY, trained(TINY))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "out"]) == 0
    said = capsys.readouterr().out
    assert f"transformers.AutoModelForCausalLM.from_pretrained('{tmp_path / 'out'}')" in said
    assert "after 3 rounds" in said

    words = ["generate", "--prompt", "-To be", "--bytes", "40", "--seed", "3", "--from"]
    with in_this_process():
        assert cli.main([*words, "out", "--json"]) == 0
        text = json.loads(capsys.readouterr().out)
        assert text["prompt"] == "-To be"
        assert text["text"].startswith("-To be")
        assert cli.main([*words, str(path / "peer-0")]) == 0
        assert capsys.readouterr().out == text["text"] + "\n"


def test_a_model_of_the_users_own_takes_its_names_from_the_peers_directory(
    run: Make, in_this_process: Here, tmp_path: Path, capsys: Said
) -> None:
    path = run(ModelConfig(architecture="custom"), np.arange(10, dtype=np.float32))
    layout = (Tensor("body.weight", (2, 4)), Tensor("body.running_mean", (2,), True))
    (path / "peer-0" / "layout.msgpack").write_bytes(msgspec.msgpack.encode(layout))
    with in_this_process():
        assert cli.main(["export", str(tmp_path / "out"), "--from", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with contextlib.closing(Store.read(path / "peer-0" / "log.sqlite")) as reader:
        assert found["vertex"] == records.vertex_id(reader.vertices(1)[0]).hex()
    assert (found["rounds"], found["architecture"], found["num_parameters"]) == (3, "custom", 10)
    assert found["files"] == ["README.md", "model.safetensors"]
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
