"""Stands for `barnraise.api.bench`: says what it would have measured, at once; run as a program."""

import sys

import msgspec

from barnraise.observe.measurements import Failed, Joined, Line, Measured, Opened, Orders, Planned


def say(line: Line) -> None:
    """Print one line."""
    print(msgspec.json.encode(line).decode(), flush=True)


def main() -> int:
    """Read the orders, and answer as rank 0 of all would."""
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders)
    say(Opened(address="/ip4/127.0.0.1/tcp/1"))
    if orders.name == "nobody":
        say(Failed(exit_code=3, why="1 of 4 peers are here"))
        return 3
    if orders.name == "broken":
        return 1
    say(Joined(rank=orders.rank, world_size=orders.num_peers))
    for size_mb in orders.sizes_mb:
        for codec in orders.codecs:
            for schedule in orders.schedules:
                took = {
                    "wall_s": size_mb / 100,
                    "cpu_s": size_mb / 50,
                    "turns_s": (size_mb / 100,) * orders.repetitions,
                }
                say(Measured(size_mb=size_mb, codec=codec, schedule=schedule, **took))
    if orders.name == "planner":
        reasons = ("4 hosts, all 25 ms from each other", "2 latencies")
        say(Planned(size_mb=1, codec="int8", schedule="shards", predicted_s=0.0625, reasons=reasons))
    return 0


if __name__ == "__main__":
    sys.exit(main())
