"""``barnraise peers --plan``: the link graph, its clusters, and what the planner says, for people and for programs."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from barnraise import cli
from barnraise.observe.status import LinkRow, MemberStatus, Status, StatusFile

MakeRun = Callable[..., Any]
NEAR_US, FAR_US = 300, 40_000
LAN_KB_S, LINE_KB_S = 117_000, 2_500


@pytest.fixture
def told(made_run: MakeRun) -> Callable[..., Any]:
    """Say what a run's first peer knows: so many members, the links that are given, a model of so many parameters."""

    def tell(links: list[LinkRow] | None = None, count: int = 4, parameters: int = 800_000) -> Any:
        run = made_run(2)
        peers = run.directory.peers
        names = [*peers, *(f"12D3KooWguest{number}" for number in range(3, count))][:count]
        rows = two_regions(names) if links is None else links
        status = Status(
            time=time.time(),
            pid=1,
            run=run.state.run.hex(),
            peer=peers[0],
            round=2,
            rounds=5,
            phase="training",
            members=tuple(MemberStatus(peer=peer, counts_from=0) for peer in names),
            links=tuple(rows),
            parameters=parameters,
        )
        StatusFile(run.home(0) / "status.json").write(status)
        return run, names

    return tell


def two_regions(names: list[str]) -> list[LinkRow]:
    """Return the rows of members of which the first half is in one room, the other half in another, far away."""
    half = len(names) // 2
    rows = []
    for number, name in enumerate(names):
        is_near = [(number < half) == (other < half) for other in range(len(names))]
        latencies = [NEAR_US if near else FAR_US for near in is_near]
        bandwidths = [LAN_KB_S if near else LINE_KB_S for near in is_near]
        latencies[number] = bandwidths[number] = 0
        rows.append(LinkRow(peer=name, latencies_us=tuple(latencies), bandwidths_kb_s=tuple(bandwidths)))
    return rows


def printed(capsys: pytest.CaptureFixture[str], run: Any, *words: str) -> str:
    assert cli.main(["peers", "--dir", str(run.path), "--node", "peer-0", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_a_person_sees_the_links_the_clusters_and_why(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, names = told()
    out = printed(capsys, run, "--plan")
    first, second, third = (f"{rank} {names[rank][-6:]}" for rank in range(3))
    cells = [line.split("  ") for line in out.splitlines()]
    rows = {(row[0], row[1].strip()): " ".join("  ".join(row[2:]).split()) for row in cells if len(row) > 2}
    assert rows[first, second] == "0.30 ms 936 Mbit/s"
    assert rows[first, third] == "40 ms 20 Mbit/s"
    assert f"2 clusters of members that are near each other: {first}, {second}; {third}, " in out
    codec = run.directory.config.round.codec
    assert f"For 3.2 MB (800,000 parameters) with codec {codec} the planner would choose hierarchical" in out
    assert "4 hosts in 2 regions (0+1, 2+3): 0.3 ms inside, 40 ms between" in out
    assert "What else it weighed:" in out
    assert "A run's rounds exchange by all-to-all shards, whatever the plan says" in out
    assert "not known yet" not in out


def test_a_program_gets_the_same(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, names = told()
    found = json.loads(printed(capsys, run, "--plan", "--json"))
    assert [row["peer"] for row in found["peers"]] == names
    plan = found["plan"]
    assert (plan["members"], plan["clusters"]) == (names, [names[:2], names[2:]])
    assert len(plan["links"]) == 12
    assert plan["links"][1] == {"from": names[0], "to": names[2], "latency_s": 0.04, "bandwidth_bytes_s": 2.5e6}
    assert (plan["elements"], plan["codec"], plan["rounds_use"]) == (
        800_000,
        run.directory.config.round.codec,
        "shards",
    )
    assert plan["kind"] == "hierarchical"
    assert plan["predicted_s"] > 2 * 0.04
    others = [other["predicted_s"] for other in plan["alternatives"]]
    assert others == sorted(others)
    assert "plan" not in json.loads(printed(capsys, run, "--json"))


def test_another_size_and_codec_can_be_asked_for(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = told()
    raw = json.loads(printed(capsys, run, "--mb", "25", "--codec", "fp32", "--json"))["plan"]
    coded = json.loads(printed(capsys, run, "--mb", "25", "--codec", "int8", "--json"))["plan"]
    assert (raw["elements"], raw["codec"], coded["codec"]) == (6_250_000, "fp32", "int8")
    assert coded["predicted_s"] < raw["predicted_s"]


def test_a_level_is_planned_as_the_codec_that_it_comes_to(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = told()
    found = json.loads(printed(capsys, run, "--mb", "25", "--codec", "auto:5", "--json"))["plan"]
    reason = next(reason for reason in found["reasons"] if "no route avoids" in reason)
    assert reason.endswith(found["codec"])
    assert found["codec"] in printed(capsys, run, "--mb", "25", "--codec", "auto:5")


def test_what_nobody_measured_is_told_in_plain_words(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = told(links=[])
    out = printed(capsys, run, "--plan")
    assert out.count("not known yet") == 24
    assert "Of 12 links 12 have no latency and 12 no bandwidth yet" in out
    assert "one cluster" in out


def test_a_row_of_another_set_of_members_is_passed_over(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = told(links=[LinkRow(peer="12D3KooWguest3", latencies_us=(1,), bandwidths_kb_s=(1,))])
    assert "Of 12 links 12 have no latency" in printed(capsys, run, "--plan")


def test_of_many_members_only_the_peers_own_links_are_listed(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, names = told(count=20)
    lines = [line for line in printed(capsys, run, "--plan").splitlines() if "Mbit/s" in line]
    assert len([line for line in lines if line.startswith(f"0 {names[0][-6:]}")]) == 19
    assert len(json.loads(printed(capsys, run, "--plan", "--json"))["plan"]["links"]) == 20 * 19


def test_a_member_alone_has_nothing_to_move(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = told(links=[], count=1)
    assert "one host: nothing to move" in printed(capsys, run, "--plan")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mb", "0"], "--mb 0 is not over 0"),
        (["--mb", "-1"], "--mb -1 is not over 0"),
        (["--mb", "1e12"], "at most 1,000,000 megabytes"),
        (["--mb", "nan"], "--mb nan is not over 0"),
        (["--codec", "int9"], "int9"),
        (["--codec", "auto:10"], "'auto:1' to 'auto:9'"),
        (["--plan"], "Say it: --mb MEGABYTES"),
    ],
)
def test_what_cannot_be_planned_is_the_users_error(
    told: Any, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    run, _ = told(parameters=0)
    extra = ["--mb", "1"] if "--codec" in words else []
    assert cli.main(["peers", "--dir", str(run.path), *words, *extra]) == 2
    assert said in capsys.readouterr().err
