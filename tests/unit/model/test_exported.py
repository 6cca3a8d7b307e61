"""What was trained is read back from what was exported, bit for bit, or it is said that it cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from barnraise.config import ModelConfig
from barnraise.errors import ConfigError
from barnraise.link.messages import Tensor, layout_digest
from barnraise.model import pretrained
from barnraise.model.conversion import gains, layout
from barnraise.model.exported import UNCENTRED_FILE, flat_of
from barnraise.model.initialise import uniform
from barnraise.model.tensors import by_name, num_elements, save_tensors

TINY = ModelConfig(hidden_size=8, num_layers=2, num_heads=1, max_seq_len=8)
THETA = uniform(2, "all", (num_elements(layout(TINY)),), 0.3)
OWN = (Tensor("body.weight", (2, 4)), Tensor("body.running_mean", (2,), True))
Tensors = dict[str, Any]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory as export writes it, with a certificate of no contents."""
    pretrained.write(tmp_path / "out", TINY, by_name(layout(TINY), THETA), ("certificate.barnraise", b"x"))
    return tmp_path / "out"


def test_the_numbers_that_were_trained_come_back(out: Path) -> None:
    assert np.array_equal(flat_of(out / "model.safetensors", TINY), THETA)
    assert (out / "certificate.barnraise").read_bytes() == b"x"
    assert "barnraise verify out" in (out / "README.md").read_text()
    assert not np.array_equal(
        load_file(out / "model.safetensors")["lm_head.weight"],
        load_file(out / UNCENTRED_FILE)["model.embed_tokens.weight"],
    )


def test_numbers_under_their_own_names_are_taken_as_they_are(tmp_path: Path) -> None:
    save_tensors(by_name(layout(TINY), THETA), tmp_path / "checkpoint.safetensors")
    assert np.array_equal(flat_of(tmp_path / "checkpoint.safetensors", TINY), THETA)
    THETA.tofile(tmp_path / "blob")
    assert np.array_equal(flat_of(tmp_path / "blob", TINY), THETA)


def nudged(name: str, by: float) -> Callable[[Tensors, Tensors], None]:
    def change(model: Tensors, exact: Tensors) -> None:
        model[name].reshape(-1)[3] += np.float32(by)

    return change


def swapped(model: Tensors, exact: Tensors) -> None:
    """Two tensors of one shape under each other's names: the same numbers, and another model."""
    first, second = "model.layers.0.feed_forward.w1.weight", "model.layers.0.feed_forward.w3.weight"
    model[first], model[second] = model[second], model[first]


def both(model: Tensors, exact: Tensors) -> None:
    """A change that the exact tensors know nothing of, and one that they do."""
    name = "model.layers.0.conv.out_proj.weight"
    model[name] *= np.float32(1.5)


def louder(model: Tensors, exact: Tensors) -> None:
    for name in gains(TINY):
        model[name] *= np.float32(1.01)


def hidden(model: Tensors, exact: Tensors) -> None:
    """An exact tensor that is not what the model's file has."""
    exact["lm_head.weight"] = model["lm_head.weight"] + np.float32(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nudged("model.layers.0.conv.out_proj.weight", 1e-5), "is not what was made of the run's parameters"),
        (nudged("model.embed_tokens.weight", 1e-5), "is not what was made of the run's parameters"),
        (both, "is not what was made of the run's parameters"),
        (louder, "is not what was made of the run's parameters"),
        (hidden, "is not what was made of the run's parameters"),
        (lambda model, exact: exact.clear(), "is not what was made of the run's parameters"),
        (lambda model, exact: model.update(extra=np.zeros(2, np.float32)), "extra is .* and should be not there"),
        (lambda model, exact: model.pop("lm_head.weight"), "lm_head.weight is not there"),
        (lambda model, exact: exact.update({"another.weight": np.zeros(2, np.float32)}), "another.weight is"),
        (nudged("lm_head.weight", np.nan), "not finite"),
    ],
)
def test_a_changed_export_is_told(out: Path, change: Callable[[Tensors, Tensors], None], said: str) -> None:
    model, exact = load_file(out / "model.safetensors"), load_file(out / UNCENTRED_FILE)
    change(model, exact)
    save_tensors(model, out / "model.safetensors")
    save_tensors(exact, out / UNCENTRED_FILE)
    with pytest.raises(ConfigError, match=said):
        flat_of(out / "model.safetensors", TINY)


@pytest.mark.parametrize("change", [swapped, nudged("lm_head.weight", 1e-5)])
def test_what_no_conversion_explains_gives_another_vector(
    out: Path, change: Callable[[Tensors, Tensors], None]
) -> None:
    model = load_file(out / "model.safetensors")
    change(model, {})
    save_tensors(model, out / "model.safetensors")
    assert not np.array_equal(flat_of(out / "model.safetensors", TINY), THETA)


@pytest.mark.parametrize("name", ["model.safetensors", UNCENTRED_FILE])
def test_files_that_cannot_be_read_are_named(out: Path, name: str) -> None:
    (out / name).write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=name):
        flat_of(out / "model.safetensors", TINY)
    (out / name).unlink()
    with pytest.raises(ConfigError, match=name):
        flat_of(out / "model.safetensors", TINY)
    with pytest.raises(ConfigError, match="cannot be read"):
        flat_of(out / "blob", TINY)


def test_a_model_of_the_users_own_goes_by_the_layout_that_the_run_fixed(tmp_path: Path) -> None:
    numbers = np.arange(10, dtype=np.float32)
    save_tensors(by_name(OWN, numbers), tmp_path / "model.safetensors")
    described = msgspec.msgpack.encode(OWN)
    config = ModelConfig(architecture="custom", layout=layout_digest(OWN))
    assert np.array_equal(flat_of(tmp_path / "model.safetensors", config, described), numbers)
    for other in (b"", b"\xc1", msgspec.msgpack.encode(OWN[::-1])):
        with pytest.raises(ConfigError):
            flat_of(tmp_path / "model.safetensors", config, other)
