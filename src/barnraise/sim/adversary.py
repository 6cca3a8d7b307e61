"""How traitors behave in a trial of agreement: each runs copies of the code that ships, makes messages up, or both.

All of them know the same two camps and tell each a different story, so that a trial has one conspiracy rather than
some lonely liars. What a traitor says beyond its copies has a budget: nobody is asked to bear an endless flood here.
"""

from typing import Final

from barnraise.consensus.agreement import Ballot
from barnraise.consensus.pbft_messages import Commit, Prepare, PrePrepare, ViewChange
from barnraise.ids import PeerId
from barnraise.sim.forgery import Forger
from barnraise.sim.schedules import Habit, Treason
from barnraise.sim.stage import Stage
from barnraise.swarm.records import digest

BUDGET: Final = 60
"""Messages that a traitor makes up in a trial, each to one camp or to some."""
FLOOD: Final = 20
"""Prepares, and as many commits, that one that floods sends at once."""
MAX_HEARD: Final = 128
NUM_WAKES: Final = 4
WITHHELD: Final = 0.4
"""Chance that one that withholds keeps a kind of message from a member."""
TELLS_ALL: Final = 0.5
"""Chance that what was proposed to one camp reaches the other one, too, later."""
TALKATIVE: Final = 0.15
"""Chance that a message that it hears sets it off babbling, forging or replaying."""


class Traitor:
    """One peer that does not keep to the protocol.

    Args:
        stage: What is around it.
        treason: What it does.
    """

    def __init__(self, stage: Stage, treason: Treason) -> None:
        self.index = treason.member
        self.peer = stage.peers[treason.member]
        self._stage = stage
        self._rng = stage.rng
        self._habits = treason.habits
        self._camp = treason.camp
        self._forger = Forger(self.peer, stage.signers[self.peer], stage.scopes, stage.rng)
        self._budget = BUDGET
        self._heard: list[Ballot] = []
        self._values: dict[bytes, bytes] = {}
        """What was proposed, by digest."""
        self._done: set[tuple[str, int, int, bytes]] = set()
        self._withheld: dict[tuple[int, type[Ballot], int], bool] = {}

    def passes(self, face: int, target: int, message: Ballot) -> bool:
        """Tell whether what one of its copies says goes to this peer."""
        if Habit.TWO_FACED in self._habits and (target in self._camp) is not (face == 0):
            return False
        if Habit.WITHHOLDING not in self._habits:
            return True
        key = face, type(message), target
        return not self._withheld.setdefault(key, self._rng.random() < WITHHELD)

    def wake(self) -> None:
        """Do something unasked."""
        height = max(self._stage.scopes)
        self._lead(height, 0)
        for message in self._heard[-1:]:
            self._provoked(message)
        if Habit.FLOODING in self._habits:
            self._flood(height)

    def asked(self, by: PeerId, height: int) -> None:
        """Answer a peer that lags with what was not decided, or with nothing."""
        if Habit.FORGING in self._habits:
            value = self._stage.values.tempt(self.index, height)
            self._say(self._forger.decided(height, 0, value, ()), frozenset({self._stage.peers.index(by)}))

    def hear(self, sender: PeerId, message: Ballot) -> None:
        """Take in what is sent to it, and do its worst."""
        if message.height not in self._stage.scopes or self._budget <= 0:
            return
        if len(self._heard) < MAX_HEARD:
            self._heard.append(message)
        match message:
            case PrePrepare():
                self._values[digest(message.value)] = message.value
                self._vote(message.height, message.view, digest(message.value))
            case Prepare() | Commit():
                self._vote(message.height, message.view, message.value)
            case ViewChange():
                self._lead(message.height, message.view)
                self._lie(message)
        if self._rng.random() < TALKATIVE:
            self._provoked(message)

    # ---- habits -----------------------------------------------------------------------------------------------

    def _vote(self, height: int, view: int, name: bytes) -> None:
        """Vote for everything, in all camps or in one."""
        if Habit.DOUBLE_VOTING not in self._habits or not self._is_new("vote", height, view, name):
            return
        prepare, commit = self._forger.votes(height, view, name)
        self._say(prepare, self._some())
        self._say(commit, self._some())

    def _lead(self, height: int, view: int) -> None:
        """Propose one thing to one camp and another to the other, where it leads."""
        members = self._stage.committees[height]
        if members[view % len(members)] != self.peer or not self._tells_stories:
            return
        if not self._is_new("lead", height, view, b""):
            return
        claims = [m for m in self._heard if isinstance(m, ViewChange) and m.height == height and m.view == view]
        newest = max(claims, key=lambda claim: claim.prepared_view, default=None)
        bound = self._values.get(newest.prepared, b"") if newest else b""
        for camp, keeps_to_claims in ((self._camp, True), (self._rest, self._rng.random() < 0.3)):
            value = bound if bound and keeps_to_claims else self._stage.values.tempt(self.index, height)
            claimed = newest.prepared_view if newest and (keeps_to_claims or self._rng.random() < 0.5) else -1
            proposal = self._forger.pre_prepare(height, view, value, claimed)
            self._say(proposal, camp)
            if self._rng.random() < TELLS_ALL:
                self._stage.later(self._rng.uniform(0.1, 3.0), self._say, proposal, self._everybody)
            for vote in self._forger.votes(height, view, digest(value)):
                self._say(vote, camp)

    def _lie(self, heard: ViewChange) -> None:
        """Change the view as well, with a claim for one camp and another one for the other."""
        if Habit.LYING not in self._habits or not self._is_new("lie", heard.height, heard.view, b""):
            return
        claims = [(-1, b""), (heard.prepared_view, heard.prepared)]
        claims += [(view, name) for view in range(min(heard.view, 4)) for name in list(self._values)[-2:]]
        for camp in (self._camp, self._rest):
            prepared_view, prepared = self._rng.choice(claims)
            self._say(self._forger.view_change(heard.height, heard.view, prepared_view, prepared), camp)
        if self._rng.random() < 0.2:
            ahead = heard.view + self._rng.randrange(1, 5)
            self._say(self._forger.view_change(heard.height, ahead, -1, b""), self._some())

    def _flood(self, height: int) -> None:
        """Drown one peer in votes; this is beyond the budget."""
        victim = frozenset({self._rng.randrange(len(self._stage.peers))})
        for _ in range(FLOOD):
            view = self._rng.choice((self._rng.randrange(4), self._rng.randrange(1000)))
            for vote in self._forger.votes(height, view, digest(self._rng.randbytes(8))):
                self._say(vote, victim, cost=0)

    def _provoked(self, message: Ballot) -> None:
        if Habit.REPLAYING in self._habits:
            self._say(self._rng.choice(self._heard), self._some())
        if Habit.BABBLING in self._habits:
            self._say(self._forger.twisted(message, self._stage.peers), self._some())
        if Habit.FORGING in self._habits:
            self._say(self._forged(message.height, message.view), self._some())

    def _forged(self, height: int, view: int) -> Ballot:
        rng, forger = self._rng, self._forger
        known = list(self._values.values())
        value = rng.choice(known) if known else self._stage.values.tempt(self.index, height)
        view = max(0, view + rng.randrange(-1, 3))
        match rng.randrange(6):
            case 0:
                return forger.pre_prepare(height, view, value, rng.randrange(-1, view + 1))
            case 1:
                return forger.view_change(height, view + 1, rng.randrange(-1, view + 2), digest(value))
            case 2:
                return forger.decided(height, view, value, self._commits(height, view, digest(value)))
            case 3:
                return forger.fetch(height, view, digest(value))
            case 4:
                return forger.votes(height, view, digest(value))[0]
            case _:
                return forger.votes(height, view, digest(value))[1]

    def _commits(self, height: int, view: int, name: bytes) -> tuple[tuple[str, bytes], ...]:
        found = {
            m.member: m.signature
            for m in self._heard
            if isinstance(m, Commit) and (m.height, m.view, m.value) == (height, view, name)
        }
        return tuple(found.items())

    # ---- means ------------------------------------------------------------------------------------------------

    @property
    def _tells_stories(self) -> bool:
        return bool(self._habits & {Habit.DOUBLE_VOTING, Habit.LYING, Habit.FORGING})

    @property
    def _everybody(self) -> frozenset[int]:
        return frozenset(range(len(self._stage.peers)))

    @property
    def _rest(self) -> frozenset[int]:
        return self._everybody - self._camp

    def _some(self) -> frozenset[int]:
        """Return whom to tell: one camp, the other, or everybody."""
        return (self._camp, self._rest, self._everybody)[self._rng.randrange(3)]

    def _is_new(self, what: str, height: int, view: int, name: bytes) -> bool:
        key = what, height, view, name
        if key in self._done:
            return False
        self._done.add(key)
        return True

    def _say(self, message: Ballot, to: frozenset[int], *, cost: int = 1) -> None:
        self._budget -= cost
        stage = self._stage
        signature = getattr(message, "signature", None)
        if signature and message.height in stage.committees:
            stage.witness.signed(signature, stage.committees[message.height])
        if stage.is_told:
            stage.tell(f"{self.peer} (traitor) makes up {type(message).__name__} of view {message.view}")
        stage.carry(self.index, message, [ear for ear in stage.others(self.peer) if ear.index in to])
