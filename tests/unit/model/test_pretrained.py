"""A model's directory: transformers computes the same from it, ours reads it back, and what does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import barnraise.model
import barnraise.model.generate
from barnraise.config import ModelConfig
from barnraise.errors import ConfigError
from barnraise.model import pretrained
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.initialise import uniform
from barnraise.model.lfm2 import transformers_config
from barnraise.model.tensors import by_name

TEXT = "To be, or not to be: \x00 ünïcödé 日本 🦀\r\n\t  end "
SHAPE: dict[str, Any] = {"hidden_size": 32, "num_layers": 4, "num_heads": 2, "max_seq_len": 64}


def trained(**changes: Any) -> tuple[ModelConfig, nn.Module]:
    config = ModelConfig(**(SHAPE | changes))
    model = build(config, 1)
    flat = flatten(model)
    flat.load(flat.numpy() + uniform(2, "all", (flat.values.numel(),), 0.1))
    return config, model


def written(directory: Path, **changes: Any) -> nn.Module:
    config, model = trained(**changes)
    flat = flatten(model)
    pretrained.write(directory, config, by_name(flat.layout, flat.numpy()))
    return model.eval()


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    return transformers


def test_transformers_computes_the_same_without_our_code(tmp_path: Path, transformers: Any) -> None:
    model = written(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    assert type(theirs).__module__ == "transformers.models.lfm2.modeling_lfm2"
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 64)))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=1e-5, rtol=0)


def test_transformers_generates_what_ours_generates(tmp_path: Path, transformers: Any) -> None:
    model = written(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    tokens = torch.tensor([list(b"To be, or")])
    found = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=20, do_sample=False)
    ours = barnraise.model.generate.generate(model, b"To be, or", 20, context=64, temperature=0)
    assert bytes(found[0].tolist()) == ours


def test_token_ids_are_the_bytes(tmp_path: Path, transformers: Any) -> None:
    written(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert tokenizer(TEXT)["input_ids"] == list(TEXT.encode())
    assert tokenizer.decode(list(TEXT.encode())) == TEXT
    assert len(tokenizer) == 256
    assert tokenizer("".join(map(chr, range(256))))["input_ids"] == list("".join(map(chr, range(256))).encode())


def test_ours_reads_it_back(tmp_path: Path) -> None:
    model = written(tmp_path / "out", dropout=0.5, gradient_checkpointing=True)
    back = barnraise.model.load(tmp_path / "out")
    tokens = torch.arange(64).view(1, 64)
    assert not back.training
    torch.testing.assert_close(back(tokens), model(tokens), atol=1e-5, rtol=0)
    assert pretrained.read_config(tmp_path / "out") == ModelConfig(**SHAPE)


def test_the_readme_says_what_loads_it(tmp_path: Path) -> None:
    written(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained('out')" in text
    assert "barnraise.model.load('out')" in text
    names = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


def test_a_model_of_the_users_own_keeps_its_names(tmp_path: Path) -> None:
    tensors = {"body.0.weight": np.ones((2, 3), np.float32), "body.0.running_mean": np.zeros(3, np.float32)}
    pretrained.write(tmp_path / "out", ModelConfig(architecture="custom"), tensors)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"README.md", "model.safetensors"}
    with pytest.raises(ConfigError, match=r"config\.json is not there"):
        barnraise.model.load(tmp_path / "out")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    written(tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(ConfigError, match="holds something already"):
        written(tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="holds something already"):
        written(tmp_path / "file")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "file"}


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        written(tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config | {"model_type": "llama"}, "model_type is 'llama'. Built in is 'lfm2'"),
        (lambda config: {"no": "type"}, "model_type is ''"),
        (lambda config: config | {"vocab_size": 50000}, "too few"),
        (lambda config: config | {"vocab_size": 257}, "too few|should be"),
        (lambda config: config | {"hidden_size": 65536}, "too few|must be"),
        (lambda config: config | {"hidden_size": 10**9}, "outside"),
        (lambda config: config | {"hidden_size": "big"}, "Expected `int`"),
        (lambda config: config | {"max_position_embeddings": True}, "max_position_embeddings"),
        (lambda config: config | {"num_hidden_layers": -1}, "outside"),
        (lambda config: config | {"num_attention_heads": 3}, "not a multiple"),
        (lambda config: config | {"num_key_value_heads": 1}, "num_key_value_heads is 1 and must be 2"),
        (lambda config: config | {"layer_types": ["full_attention"] * 4}, "layer_types"),
        (lambda config: config | {"norm_eps": 1e-6}, "norm_eps"),
        (lambda config: config | {"tie_word_embeddings": True}, "tie_word_embeddings"),
        (lambda config: config | {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    written(tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ConfigError, match=said):
        barnraise.model.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 5}, "too few"),
        ({"hidden_size": 65536, "num_heads": 1}, "too few"),
        ({"num_layers": 1024, "hidden_size": 65536, "num_heads": 1}, "too few"),
        ({"num_layers": 3}, r"layers\.3\..* should be not there"),
        ({"num_heads": 1}, r"layernorm.* should be \(\[32\]"),
        ({"num_heads": 32}, "is odd"),
    ],
)
def test_a_config_of_another_shape_than_the_tensors_is_refused(
    tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    written(tmp_path / "out")
    described = transformers_config(ModelConfig(**(SHAPE | changes)))
    (tmp_path / "out" / "config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=said):
        barnraise.model.load(tmp_path / "out")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model_type": 3}', b" " * (1 << 21)]
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    written(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        barnraise.model.load(tmp_path / "out")


def test_a_model_that_was_changed_elsewhere_is_told_apart(tmp_path: Path) -> None:
    written(tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embedding_norm.weight"] *= np.float32(2)
    save_file(tensors, file)
    with pytest.raises(ConfigError, match="gains other than 1"):
        barnraise.model.load(tmp_path / "out")


def test_a_pickle_is_not_looked_at(tmp_path: Path) -> None:
    written(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.safetensors is not there"):
        barnraise.model.load(tmp_path / "out")
