"""One flat vector behind a module, and its way through safetensors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from barnraise.errors import ConfigError, LocalError
from barnraise.link.messages import Tensor as Named
from barnraise.model.flat import Flat, flatten
from barnraise.model.tensors import by_name, read_tensors, save_tensors

SHAPES = {"0.weight": (2, 3), "1.weight": (4, 2), "1.bias": (4,)}


def module() -> tuple[nn.Module, Flat]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 4))
    return model, flatten(model)


def test_layout_is_in_the_order_of_the_module() -> None:
    model, flat = module()
    assert flat.layout == (Named("0.weight", (2, 3)), Named("1.weight", (4, 2)), Named("1.bias", (4,)))
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    assert torch.equal(flat.values, expected)


def test_parameters_and_gradients_are_views() -> None:
    model, flat = module()
    flat.load(np.arange(18, dtype=np.float32))
    assert next(model.parameters()).tolist() == [[0, 1, 2], [3, 4, 5]]
    x = torch.ones(1, 3)
    model(x).sum().backward()
    once = flat.gradients.clone()
    assert once.any()
    model(x).sum().backward()
    assert torch.equal(flat.gradients, 2 * once)
    flat.gradients.zero_()
    model(x).sum().backward()
    assert torch.equal(flat.gradients, once)


def test_flattening_keeps_what_the_module_computes() -> None:
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 4))
    x = torch.ones(2, 3)
    before = plain(x)
    flatten(plain)
    assert torch.equal(plain(x), before)


def test_a_vector_of_another_size_is_refused() -> None:
    _, flat = module()
    with pytest.raises(LocalError, match=r"\(17,\).*\(18,\)"):
        flat.load(np.zeros(17, dtype=np.float32))


def test_other_types_than_float32_are_refused() -> None:
    with pytest.raises(LocalError, match=r"weight is torch\.float64"):
        flatten(nn.Linear(2, 2).double())


def test_a_vector_is_taken_apart_by_name() -> None:
    _, flat = module()
    tensors = by_name(flat.layout, flat.numpy())
    assert {name: tensor.shape for name, tensor in tensors.items()} == SHAPES
    for name, (value, _) in flat.views().items():
        assert np.array_equal(tensors[name], value.numpy())
    with pytest.raises(LocalError, match=r"\(17,\) and the layout 18"):
        by_name(flat.layout, np.zeros(17, dtype=np.float32))


def test_safetensors_round_trip(tmp_path: Path) -> None:
    _, flat = module()
    tensors = by_name(flat.layout, flat.numpy())
    save_tensors(tensors, tmp_path / "model.safetensors")
    found = read_tensors(tmp_path / "model.safetensors", SHAPES)
    assert all(np.array_equal(found[name], tensor) for name, tensor in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("bias", "bios"): value for name, value in tensors.items()}


def reshaped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"1.bias": torch.zeros(2, 2)}


def widened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"1.bias": torch.zeros(4, dtype=torch.float64)}


def extended(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"2.bias": torch.zeros(1)}


def poisoned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"1.bias": torch.tensor([0.0, float("nan"), 0.0, 0.0])}


@pytest.mark.parametrize("change", [renamed, reshaped, widened, extended, poisoned])
def test_a_file_of_another_model_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    _, flat = module()
    tensors = {name: value.clone() for name, (value, _) in flat.views().items()}
    save_file(change(tensors), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"other\.safetensors: (1\.bi|2\.bias)"):
        read_tensors(tmp_path / "other.safetensors", SHAPES)


@pytest.mark.parametrize("content", [b"", b"\x80\x02pickle", b"\xff" * 8 + b"{}", bytes(200)])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tensors(path, SHAPES)


def test_a_file_that_is_not_there_is_the_users(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tensors(tmp_path / "none.safetensors", SHAPES)
