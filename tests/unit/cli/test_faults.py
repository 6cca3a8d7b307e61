"""What --kill understands."""

import pytest

from barnraise.cli.faults import Fault, parse
from barnraise.errors import ConfigError


def test_peers_and_trainers_can_be_killed() -> None:
    read = parse(["peer:2@round:3", "trainer:1@round:0"], num_peers=4, rounds=4)
    assert read == (Fault(kind="peer", index=2, round=3), Fault(kind="trainer", index=1, round=0))
    assert [str(fault) for fault in read] == ["peer:2@round:3", "trainer:1@round:0"]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["peer:2"], "'peer:2' is not understood. Write peer:2@round:3"),
        (["peer:2@round:3 "], "is not understood"),
        (["owner:2@round:3"], "is not understood"),
        (["peer:-1@round:3"], "is not understood"),
        (["peer:4@round:3"], "there is no peer 4, the peers are 0 .. 3"),
        (["peer:2@round:5"], "there is no round 5, the rounds are 0 .. 4"),
        ([f"peer:{index}@round:1" for index in range(4)], "nobody would be left"),
    ],
)
def test_what_cannot_be_done_is_said_in_plain_words(texts: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(texts, num_peers=4, rounds=5)
    assert said in str(raised.value)


def test_all_trainers_may_be_killed() -> None:
    assert len(parse([f"trainer:{index}@round:1" for index in range(4)], num_peers=4, rounds=5)) == 4
