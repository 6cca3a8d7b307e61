"""Where values come from, what is refused, and what the run id covers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from barnraise.config import (
    BULK_PORT,
    CONTROL_PORT,
    ELSEWHERE,
    PEER_PRESETS,
    PRESETS,
    DataConfig,
    OuterConfig,
    PeerConfig,
    RoundConfig,
    RunConfig,
    build,
    check_codec,
    flatten,
    load_peer_config,
    load_peer_table,
    load_run_config,
    run_config,
    save,
)
from barnraise.errors import ConfigError
from barnraise.identity import Identity


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(seed=7, founders=("a", 'quoted "b"'), data=DataConfig(source="/a\\b\n"), outer=OuterConfig(lr=1e-05)),
        *(RunConfig(model=model) for model in PRESETS.values()),
    ],
)
def test_a_saved_config_is_read_back_unchanged(tmp_path: Path, config: RunConfig) -> None:
    save(config, tmp_path / "run.toml")
    assert load_run_config(tmp_path / "run.toml") == config
    assert load_run_config(tmp_path / "run.toml").run_id == config.run_id


def test_a_peers_config_is_read_back_unchanged(tmp_path: Path) -> None:
    config = PeerConfig(data_dir=tmp_path / "data", cluster_key_file=tmp_path / "key", trainer=("python", "-c"))
    save(config, tmp_path / "peer.toml")
    assert load_peer_config(tmp_path / "peer.toml") == config


def test_the_environment_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "seed = 2\n[round]\nsteps = 10\nrounds = 5\n")
    config = load_run_config(path, {"BARNRAISE_RUN_ROUND__STEPS": "30", "BARNRAISE_RUN_OUTER__LR": "0.5", "HOME": "/"})
    assert (config.seed, config.round.rounds, config.round.steps, config.outer.lr) == (2, 5, 30, 0.5)
    assert config.outer.momentum == OuterConfig().momentum


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sed = 1", "unknown key 'sed'.*seed"),
        ("[model]\nwidth = 1", "unknown key 'model.width'"),
        ('seed = "one"', "seed"),
        ("model = 3", "model"),
        ("[outer]\nlr = 11.0", "outer.lr = 11.0 is outside"),
        ("[outer]\nlr = nan", "outer.lr"),
        ("[inner]\nlr = inf", "inner.lr"),
        ("[inner]\nclip_norm = nan", "inner.clip_norm = nan is not a number"),
        ("[round]\nrounds = 0", "round.rounds = 0 is outside"),
        ("[model]\nhidden_size = 100\nnum_heads = 3", "not a multiple"),
        ("[model]\nhidden_size = 99\nnum_heads = 3", "over model.num_heads = 3 is odd"),
        ('[outer]\noptimizer = "adam"', "unknown key 'outer.optimizer'"),
        ('strategy = "gossip"', "strategy"),
        ("seed = ", "is not TOML"),
        ("[inner]\nbatch_size = 1.5", "inner.batch_size"),
        ('[round]\ncodec = "gzip"', r"round\.codec: codec 'gzip': there is no stage"),
        ('[round]\ncodec = "fp32"', "fp32 is not for int16 values"),
        ("[round]\ncodec = 8", r"round\.codec"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_run_config(written(tmp_path, text))


def test_a_wrong_variable_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, "seed = 2\n")
    with pytest.raises(ConfigError, match=r"round\.step"):
        load_run_config(path, {"BARNRAISE_RUN_ROUND__STEP": "30"})
    with pytest.raises(ConfigError, match="seed"):
        load_run_config(path, {"BARNRAISE_RUN_SEED__MORE": "30"})


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load_run_config(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_run_config(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="cluster_key_file"):
        load_peer_config(written(tmp_path, 'data_dir = "/data"'))


def test_the_run_id_covers_every_rule_and_no_path() -> None:
    base = RunConfig(founders=("a", "b"))
    assert replace(base, data=DataConfig(source="/elsewhere")).run_id == base.run_id
    changed: list[RunConfig] = [
        replace(base, seed=2),
        replace(base, founders=("a",)),
        replace(base, data=DataConfig(digest="00")),
        replace(base, outer=OuterConfig(lr=0.9000000000000001)),
        replace(base, round=RoundConfig(steps=26)),
        replace(base, model=PRESETS["small"]),
    ]
    assert len({config.run_id for config in [base, *changed]}) == len(changed) + 1


@pytest.mark.parametrize("name", ["run.yaml", "run.yml"])
def test_yaml_says_what_toml_says(tmp_path: Path, name: str) -> None:
    config = RunConfig(seed=7, founders=("a", "no", "1e3"), outer=OuterConfig(lr=1e-05), model=PRESETS["small"])
    save(config, tmp_path / name)
    assert load_run_config(tmp_path / name) == config
    assert load_run_config(tmp_path / name).run_id == config.run_id


ONE_FILE = "seed = 3\n[round]\nsteps = 9\n[peer]\nmax_peers = 10\n"


def test_one_file_holds_the_run_and_the_peer(tmp_path: Path) -> None:
    path = written(tmp_path, ONE_FILE)
    assert load_run_config(path) == RunConfig(seed=3, round=RoundConfig(steps=9))
    peer = load_peer_table(path, {"data_dir": "/data", "cluster_key_file": Path("/key"), "max_peers": 20})
    assert peer == PeerConfig(data_dir=Path("/data"), cluster_key_file=Path("/key"), max_peers=10)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("peer = 3", "peer = 3 is no table"),
        ("[peer]\nmax_peer = 10", "unknown key 'peer.max_peer'"),
        ("[peer]\nmax_peers = []", "peer.max_peers"),
        ("[peer]\ndata_dir = 3", "peer.data_dir = 3: a path is text"),
        ("[peer]\nmax_peers = 3", "cluster_key_file"),
    ],
)
def test_a_wrong_peer_table_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_peer_table(written(tmp_path, text), {"data_dir": "/data"})


@pytest.mark.parametrize(("theirs", "ours"), sorted(ELSEWHERE.items()))
def test_a_key_by_another_programs_name_is_answered_with_ours(tmp_path: Path, theirs: str, ours: str) -> None:
    *_, key = ours.split(".")
    assert ours in flatten(RunConfig()) or key in {*PeerConfig.__dataclass_fields__, "model"}
    kind = PeerConfig if ours.startswith("peer.") else RunConfig
    if theirs not in kind.__dataclass_fields__:
        with pytest.raises(ConfigError, match=f"It is called {ours} here"):
            build(kind, {theirs: 1}, "here")


def test_the_kinds_of_settings_are_settings() -> None:
    ports = {
        "local": (CONTROL_PORT, BULK_PORT),
        "distributed": (CONTROL_PORT, BULK_PORT),
        "cloud": (9000, 9001),
        "edge": (0, 0),
    }
    assert PEER_PRESETS.keys() == ports.keys()
    for name, preset in PEER_PRESETS.items():
        peer = build(PeerConfig, {"data_dir": "/data", "cluster_key_file": "/key", **preset}, "preset")
        assert peer.listen.endswith(f"/tcp/{ports[name][0]}")
        assert peer.bulk_listen.endswith(f":{ports[name][1]}")
    assert "127.0.0.1" in PEER_PRESETS["local"]["listen"]
    assert PEER_PRESETS["local"].keys() == {"listen", "bulk_listen"}


def test_keys_are_flattened_with_dots() -> None:
    flat: dict[str, Any] = flatten(RunConfig())
    assert flat["model.hidden_size"] == 128
    assert flat["seed"] == 1
    assert all("." in key or not isinstance(value, dict) for key, value in flat.items())


def test_a_mapping_that_is_not_from_a_file_is_checked_alike() -> None:
    assert run_config({"seed": 5}, "here").seed == 5
    with pytest.raises(ConfigError, match="here: unknown key"):
        run_config({"Seed": 5}, "here")


def test_a_codec_that_does_not_decode_alike_everywhere_is_for_those_who_take_each_others_word() -> None:
    check_codec("powersgd:2", "home", "here")
    check_codec("topk:0.05+int8+zstd", "open", "here")
    with pytest.raises(ConfigError, match=r"here: round\.codec = 'powersgd:2' decodes by float arithmetic.*'open'"):
        check_codec("powersgd:2", "open", "here")
    with pytest.raises(ConfigError, match=r"here: round\.codec: .*int9"):
        check_codec("int9", "home", "here")


def test_operators_are_peers_each_named_once_and_few() -> None:
    named = sorted(Identity.generate().peer_id for _ in range(2))
    config = run_config({"operators": named[::-1], "founders": ["founder"]}, "here")
    assert config.operator_ids == tuple(named)
    assert config.run_id != run_config({"founders": ["founder"]}, "here").run_id
    assert run_config({"founders": ["b", "a"]}, "here").operator_ids == ("a", "b")
    assert run_config({"founders": [str(number) for number in range(14)]}, "here").operator_ids == ()
    with pytest.raises(ConfigError, match="here: operators: 'nobody' is no peer id"):
        run_config({"operators": ["nobody"]}, "here")
    with pytest.raises(ConfigError, match="named twice"):
        run_config({"operators": [named[0], named[0]]}, "here")
    with pytest.raises(ConfigError, match="at most 13"):
        run_config({"operators": [str(number) for number in range(14)]}, "here")


def test_a_fork_names_a_checkpoint_and_its_parameters() -> None:
    parent, initial = "ab" * 32, "cd" * 32
    config = run_config({"model": {"parent": parent, "initial": initial}}, "here")
    assert config.run_id != run_config({"model": {"initial": initial}}, "here").run_id
    with pytest.raises(ConfigError, match=r"model\.parent without model\.initial"):
        run_config({"model": {"parent": parent}}, "here")
    for wrong in ("ab", "xy" * 32):
        with pytest.raises(ConfigError, match=r"model\.parent = .* is not 64 hexadecimal digits"):
            run_config({"model": {"parent": wrong, "initial": initial}}, "here")
