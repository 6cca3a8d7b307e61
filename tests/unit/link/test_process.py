"""The peer's end of the trainer, against small scripts that die, babble and overdo it."""

import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from barnraise.errors import LocalError
from barnraise.link.messages import Begin, Done, Initialise, Initialised, Segment
from barnraise.link.process import MAX_DEATHS, TrainerProcess, TrainerUp

DEADLINE_S = 30.0
PREAMBLE = """
import os, socket, sys
import msgspec
from barnraise.link.messages import *
from barnraise.link import messages

connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[sys.argv.index("--socket") + 1])
stream = connection.makefile("rwb")


def say(message):
    stream.write(messages.frame(message))
    stream.flush()


def hear():
    prefix = stream.read(4)
    if not prefix:
        sys.exit(0)
    return messages.from_peer(stream.read(messages.body_length(prefix)))


def hello(**changes):
    fields = dict(version=messages.VERSION, pid=os.getpid(), layout=(), data_digest=b"", device="cpu")
    return messages.Hello(**(fields | changes))
"""
DILIGENT = """
say(hello())
while True:
    work = hear()
    if isinstance(work, messages.Initialise):
        say(messages.Initialised())
    elif isinstance(work, messages.Begin):
        say(messages.Done(round=work.round, steps=work.steps, samples=1, tokens=1, loss=1.0, validation_nats=0.0,
                          validation_tokens=0, took_s=0.0))
"""
SLOW = """
say(hello())
while True:
    work = hear()
    say(messages.Progress(round=work.round, step=1, loss=1.0))
"""


def begin(round_: int) -> Begin:
    return Begin(
        round=round_,
        fragment=0,
        theta_path="",
        update_path="",
        segments=(Segment(0, 1),),
        steps=1,
        first_step=0,
        total_steps=1,
        snapshot_in="",
        snapshot_out="",
        evaluate=Segment(0, 0),
    )


def trainer_of(tmp_path: Path, script: str) -> TrainerProcess:
    file = tmp_path / "trainer.py"
    file.write_text(PREAMBLE + textwrap.dedent(script))
    return TrainerProcess([sys.executable, str(file)], tmp_path / "trainer.log")


@asynccontextmanager
async def running(trainer: TrainerProcess) -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trainer.run)
            yield
            nursery.cancel_scope.cancel()


async def up(trainer: TrainerProcess) -> TrainerUp:
    event = await trainer.events.receive()
    assert isinstance(event, TrainerUp)
    return event


async def failure_of(trainer: TrainerProcess) -> LocalError:
    """Return what the trainer's death comes to; whatever it said before is dropped."""
    with trio.fail_after(DEADLINE_S):
        with pytest.RaisesGroup(LocalError, allow_unwrapped=True, flatten_subgroups=True) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain, trainer)
                await trainer.run()
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LocalError)
    return error


async def drain(trainer: TrainerProcess) -> None:
    async for _ in trainer.events:
        pass


async def test_work_is_given_and_done_in_order(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DILIGENT)
    async with running(trainer):
        assert (await up(trainer)).died is None
        await trainer.assign(Initialise(path=""))
        assert await trainer.events.receive() == Initialised()
        for round_ in range(3):
            await trainer.assign(begin(round_))
            done = await trainer.events.receive()
            assert isinstance(done, Done)
            assert done.round == round_


async def test_a_trainer_that_is_killed_comes_back_to_the_same_work(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SLOW)
    async with running(trainer):
        first = await up(trainer)
        await trainer.assign(begin(7))
        progress = await trainer.events.receive()
        os.kill(first.hello.pid, signal.SIGKILL)
        second = await up(trainer)
        assert second.died == -signal.SIGKILL
        assert second.hello.pid != first.hello.pid
        assert await trainer.events.receive() == progress


async def test_work_given_before_it_is_up_is_not_lost(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DILIGENT)
    await trainer.assign(begin(4))
    async with running(trainer):
        await up(trainer)
        done = await trainer.events.receive()
        assert isinstance(done, Done)
        assert done.round == 4


async def test_leaving_takes_the_process_along(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SLOW)
    async with running(trainer):
        pid = (await up(trainer)).hello.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_five_deaths_end_it_with_the_last_words(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 'say(hello())\nsys.exit("out of memory, say")')
    error = await failure_of(trainer)
    assert f"died {MAX_DEATHS} times" in str(error)
    assert "exit status 1" in str(error)
    assert str(error).endswith("out of memory, say")


async def test_a_trainer_that_dies_before_hello_ends_it_too(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('no such device')")
    trainer = TrainerProcess([sys.executable, str(tmp_path / "broken.py")], tmp_path / "trainer.log")
    assert "no such device" in str(await failure_of(trainer))


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("stream.write(bytes([4, 0, 0, 0]) + b'nope')\nstream.flush()\nhear()", "malformed"),
        ("say(hello(device='x'))\nstream.write(bytes([2, 0, 0, 0, 0x91, 0xc1]))\nstream.flush()\nhear()", "malformed"),
        ("stream.write(bytes([255, 255, 255, 255]))\nstream.flush()\nhear()", "over the limit"),
        ("say(hello(version=99))\nhear()", "instead of a Hello of version 1"),
        ("say(messages.Initialised())\nhear()", "instead of a Hello"),
        ("say(hello())\nsay(hello())\nhear()", "hello twice"),
    ],
    ids=["no message", "not msgpack", "oversized", "another version", "no hello", "two hellos"],
)
async def test_a_trainer_that_breaks_the_protocol_is_named(tmp_path: Path, script: str, complaint: str) -> None:
    assert complaint in str(await failure_of(trainer_of(tmp_path, script)))
