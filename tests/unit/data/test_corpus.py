"""What counts as a text to train on, how it is split, and what a user is told when it will not do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from barnraise.config import DataConfig
from barnraise.data.bundle import plain_text
from barnraise.data.corpus import TEXT_SUFFIXES, VALIDATION_PLAYS, bundled_plays, digest, load
from barnraise.errors import ConfigError

SENTENCE = "The quick brown fox jumps over the lazy dog. "


def of(path: Path, fraction: float = 0.1) -> DataConfig:
    return DataConfig(source=str(path), validation_fraction=fraction)


def test_bundled_corpus_holds_out_whole_plays() -> None:
    plays = bundled_plays()
    corpus = load(DataConfig())
    assert len(plays) == 38
    assert (len(corpus.train), len(corpus.validation)) == (4_708_199, 247_453)
    assert plays[VALIDATION_PLAYS[0]].startswith(b"As You Like It\n\nACT I\n")
    held_out = b"\n".join(plays[index] for index in VALIDATION_PLAYS)
    assert corpus.validation.tobytes() == held_out
    assert plays[VALIDATION_PLAYS[0]] not in corpus.train.tobytes()
    assert max(corpus.train) < 128


def test_bundled_digest_is_golden() -> None:
    assert load(DataConfig()).digest.hex() == "53d4937ddde01326082718a409e53202f48dc93a4e4f50736d9bca6e7e22b9ba"


def test_digest_tells_where_the_text_was_split() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc")


def test_text_file_is_split_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(100)))
    corpus = load(of(path))
    assert corpus.train.tolist() == list(range(90))
    assert corpus.validation.tolist() == list(range(90, 100))
    assert corpus.train.dtype == np.uint8


def test_directory_is_read_in_order_of_path_and_by_suffix(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c.PY").write_text("third")
    (tmp_path / "image.png").write_bytes(bytes(1000))
    corpus = load(of(tmp_path, 0.2))
    assert np.concatenate([corpus.train, corpus.validation]).tobytes() == b"first\n\nsecond\n\nthird"
    assert ".png" not in TEXT_SUFFIXES


def test_jsonl_takes_the_text_of_each_line(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "caf\\u00e9", "id": 7}\n\n{"text": "second"}\n')
    corpus = load(of(path, 0.2))
    assert np.concatenate([corpus.train, corpus.validation]).tobytes().decode() == "café\n\nsecond"


@pytest.mark.parametrize("line", ['{"text": 5}', '{"words": "no"}', "[1, 2]", "not json", '"text"'])
def test_jsonl_names_the_line_it_cannot_use(tmp_path: Path, line: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"text\.jsonl, line 2: .*string field"):
        load(of(path))


def test_missing_file_is_named_with_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read data\.source .*nowhere\.txt: No such file.*'bundled'"):
        load(of(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize("content", [b"", b" \n\n "])
def test_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no text"):
        load(of(path))


def test_directory_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"1234")
    with pytest.raises(ConfigError, match=r"holds no text in files ending in .*\.txt"):
        load(of(tmp_path))


def test_too_short_a_text_names_both_lengths(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(SENTENCE * 20)
    with pytest.raises(ConfigError, match=r"validation text of .* has 90 bytes and one sample needs 129"):
        load(of(path), window=129)


def test_a_run_goes_on_only_with_the_text_it_was_begun_with(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCE * 20)
    found = load(of(path)).digest.hex()
    assert load(replace(of(path), digest=found)).digest.hex() == found
    path.write_text(SENTENCE * 21)
    with pytest.raises(ConfigError, match=f"begun with {found[:12]}"):
        load(replace(of(path), digest=found))


def test_too_long_a_text_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("barnraise.data.corpus.MAX_TEXT_BYTES", 100)
    path = tmp_path / "long.txt"
    path.write_text(SENTENCE * 20)
    with pytest.raises(ConfigError, match="holds 900 bytes and the limit is 100"):
        load(of(path))


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_fraction_must_leave_something_on_both_sides(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        load(of(tmp_path, fraction))


def test_markdown_becomes_plain_ascii() -> None:
    markdown = "# Title\n\n## ACT I\n\n_Enter A_\n\n**A**  \nO, \\[Aside\\] go—now!  \n\n\n\n*[Exit*\n"
    assert plain_text(markdown) == "Title\n\nACT I\n\nEnter A\n\nA\nO, [Aside] go--now!\n\n[Exit\n"
