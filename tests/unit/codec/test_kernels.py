"""The compiled kernels and numpy's: the same bits for whatever goes in."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.codec import kernels
from barnraise.codec.grid import Float32, Int16
from barnraise.codec.kernels import COMPILED, Kernels
from barnraise.codec.plain import BLOCKS, Noise, Plain, Terms

ROOT = Path(__file__).parents[3]
SIZES = st.one_of(st.integers(0, 12), *(st.integers(size - 3, size + 3) for size in (128, 256, 1024, 3072)))
compiled = pytest.mark.skipif(COMPILED is None, reason="built without a C compiler")


def values_of(dtype: type, size: int, seed: int) -> Float32 | Int16:
    generator = np.random.default_rng(seed)
    values = generator.standard_t(1, size) * 2.0 ** generator.integers(-150 if dtype == np.float32 else -5, 30)
    if dtype == np.float32:
        return values.clip(-1.7e38, 1.7e38).astype(np.float32)
    return np.rint(values).clip(-32768, 32767).astype(np.int16)


def both(work: Callable[[Kernels], list[np.ndarray]]) -> None:
    """Check that both come to the same bytes."""
    assert COMPILED is not None
    for one, other in zip(work(COMPILED), work(Plain()), strict=True):
        assert one.tobytes() == other.tobytes()


@compiled
@settings(deadline=None)
@given(
    bits=st.sampled_from([8, 4, 2]),
    is_float=st.booleans(),
    is_noisy=st.booleans(),
    size=SIZES,
    seed=st.integers(0, 1 << 32),
)
def test_blocks(bits: int, is_float: bool, is_noisy: bool, size: int, seed: int) -> None:
    values = values_of(np.float32 if is_float else np.int16, size, seed)
    noise: Noise | None = np.random.default_rng(seed).integers(0, 1 << 16, size).astype(np.uint16) if is_noisy else None
    scales = -(-size // BLOCKS[bits]) * values.itemsize * (2 if bits == 2 else 1)

    def work(chosen: Kernels) -> list[np.ndarray]:
        marks, codes = np.full(scales, 0xEE, np.uint8), np.full(-(-size * bits // 8), 0xEE, np.uint8)
        assert chosen.quantise(bits, values, marks, codes, noise)
        decoded = np.full_like(values, 99)
        chosen.dequantise(bits, marks, codes, decoded)
        found = [marks, codes, decoded]
        if is_float:
            total: Float32 = np.ones(size, np.float32)
            chosen.dequantise_add(bits, marks, codes, total, total)
            found.append(total)
        return found

    both(work)


@compiled
@settings(deadline=None)
@given(
    size=SIZES,
    num_others=st.integers(0, 4),
    weight=st.sampled_from([1.0, 0.25, 3.0]),
    divisor=st.sampled_from([1.0, 2.0, 7.0, 1e-9]),
    is_fed=st.booleans(),
    seed=st.integers(0, 1 << 32),
)
def test_sums(size: int, num_others: int, weight: float, divisor: float, is_fed: bool, seed: int) -> None:
    own, owed = values_of(np.float32, size, seed), values_of(np.float32, size, seed + 1)
    assert own.dtype == owed.dtype == np.float32
    own = own.astype(np.float32)
    own[seed % 7 :: 97] = [np.nan, np.inf, -np.inf, 1.3e30, -1.3e30, 3e38, -0.0][seed % 7]
    generator = np.random.default_rng(seed)
    border = 4 * -(-size // 1024)
    others = [np.frombuffer(generator.bytes(border + size), np.uint8).copy() for _ in range(num_others)]
    for other in others:
        other[:border] &= 0x3F

    def work(chosen: Kernels) -> list[np.ndarray]:
        lost = np.full(size, 99, np.float32)
        terms = Terms(own=own, weight=weight, divisor=divisor, cuts_off=True)
        if is_fed:
            terms.owed, terms.lost, terms.share = owed.astype(np.float32), lost, weight / divisor
        out = np.full(border + size, 0xEE, np.uint8)
        assert chosen.quantise_sum(terms, others, out)
        return [out, lost]

    with np.errstate(all="ignore"):
        both(work)


@compiled
@settings(deadline=None)
@given(size=SIZES, offset=st.integers(0, 5), seed=st.integers(0, 1 << 32))
def test_values_that_go_past_the_cache(size: int, offset: int, seed: int) -> None:
    values = values_of(np.float32, size, seed)
    marks, codes = np.empty(4 * -(-size // 1024), np.uint8), np.empty(size, np.uint8)
    assert COMPILED is not None
    assert COMPILED.quantise(8, values, marks, codes, None)

    def work(chosen: Kernels) -> list[np.ndarray]:
        room = np.full(size + 10, 99, np.float32)
        chosen.dequantise_past_cache(marks, codes, room[offset : offset + size])
        return [room]

    both(work)


@compiled
@settings(deadline=None)
@given(bits=st.sampled_from([8, 4, 2]), is_float=st.booleans(), size=SIZES, seed=st.integers(0, 1 << 32))
def test_bytes_that_no_encoder_made(bits: int, is_float: bool, size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    dtype: type = np.float32 if is_float else np.int16
    scales = -(-size // BLOCKS[bits]) * np.dtype(dtype).itemsize * (2 if bits == 2 else 1)
    marks = np.frombuffer(generator.bytes(scales), np.uint8) & np.uint8(0x3F)
    codes = np.frombuffer(generator.bytes(-(-size * bits // 8)), np.uint8)

    def work(chosen: Kernels) -> list[np.ndarray]:
        decoded = np.full(size, 99, dtype)
        chosen.dequantise(bits, marks, codes, decoded)
        raw = np.frombuffer(codes.tobytes()[: len(codes) // 4 * 4], np.uint8)  # any bits, at any address
        return [decoded, np.array([chosen.largest(each, decoded.dtype) for each in (marks, raw, raw[4:])])]

    both(work)


@compiled
@pytest.mark.parametrize("kind", ["half", "bfloat"])
@settings(deadline=None)
@given(words=st.lists(st.integers(0, (1 << 32) - 1), max_size=40))
def test_16_bit_floats(kind: str, words: list[int]) -> None:
    values = np.array(words, np.uint32).view(np.float32)
    values = values[np.isfinite(values)]

    def work(chosen: Kernels) -> list[np.ndarray]:
        data, back, total = np.empty(2 * len(values), np.uint8), np.empty_like(values), np.ones_like(values)
        chosen.to_float16(kind, values, data)  # type: ignore[arg-type]
        chosen.from_float16(kind, data, back)  # type: ignore[arg-type]
        chosen.add_float16(kind, data, total, total)  # type: ignore[arg-type]
        return [data, back, total]

    both(work)


@compiled
@settings(deadline=None)
@given(exponent=st.integers(-20, 40), size=st.integers(0, 70), seed=st.integers(0, 1 << 32))
def test_the_grid(exponent: int, size: int, seed: int) -> None:
    update, residual = values_of(np.float32, size, seed), values_of(np.float32, size, seed + 1)
    assert update.dtype == residual.dtype == np.float32

    def work(chosen: Kernels) -> list[np.ndarray]:
        wanted, integers = update.astype(np.float32), np.empty(size, np.int16)
        assert chosen.to_grid(wanted, residual.astype(np.float32), exponent, integers)
        lost = np.empty(size, np.float32)
        chosen.remainder(wanted, integers, exponent, lost)
        return [wanted, integers, lost]

    both(work)


@pytest.mark.parametrize("chosen", [Plain(), pytest.param(COMPILED, marks=compiled)], ids=["plain", "compiled"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 200, 299])
def test_both_notice_what_is_not_finite(chosen: Kernels, value: float, place: int) -> None:
    values = np.zeros(300, np.float32)
    values[place] = value
    for bits in (8, 4, 2):
        marks, codes = np.empty(64, np.uint8), np.empty(300, np.uint8)
        assert not chosen.quantise(bits, values, marks, codes, None)
    assert not chosen.quantise_sum(Terms(own=values), [], np.empty(304, np.uint8))
    assert not chosen.to_grid(values.copy(), np.zeros(300, np.float32), 10, np.empty(300, np.int16))
    assert not chosen.to_grid(np.zeros(300, np.float32), values, 10, np.empty(300, np.int16))


def test_a_library_of_another_source_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "kernels.c"
    changed.write_text(kernels.SOURCE.read_text() + "\n")
    monkeypatch.setattr(kernels, "SOURCE", changed)
    assert kernels.load() is None
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "libkernels.so")
    assert kernels.load() is None
    (tmp_path / "libkernels.so").write_bytes(b"of another system")
    assert kernels.load() is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
@pytest.mark.parametrize("flag", ["-DONE_TARGET", "-fsyntax-only"])
def test_they_compile_without_a_warning(flag: str, tmp_path: Path) -> None:
    command = ["cc", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", flag, str(kernels.SOURCE)]
    done = subprocess.run([*command, "-o", str(tmp_path / "made.so")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not (ROOT / "hatch_build.py").exists(), reason="installed without its sources")
@pytest.mark.parametrize(("compiler", "complaint"), [("no-such-compiler -O3", "no C compiler"), ("false", "false -O3")])
def test_without_a_compiler_the_package_builds_all_the_same(compiler: str, complaint: str, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    script = (
        "import pathlib, sys, hatch_build\n"
        "print(hatch_build.compile_kernels(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", script, str(kernels.SOURCE), str(tmp_path / "made.so")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CC": compiler}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert complaint in done.stdout
    assert not list(tmp_path.iterdir())
