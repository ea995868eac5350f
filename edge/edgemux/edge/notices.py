"""What has changed since the last look that an operator wants to know: breakers, clouds, certificates, levels, budgets.

Looked at ten times a second beside the requests, so that nothing on their way has to write a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edgemux.edge.agent import Agent
from edgemux.edge.breaker import State
from edgemux.edge.cloud_executor import CloudExecutor
from edgemux.edge.events import (
    BreakerClosed,
    BreakerOpened,
    BudgetExhausted,
    BudgetRefilled,
    CertificateWithdrawn,
    CloudFound,
    CloudLost,
    CloudServes,
    DriftAlarmed,
    LevelChanged,
    ReCertified,
    SplitLeftAlone,
    SplitUsable,
)
from edgemux.edge.heads import Alone
from edgemux.edge.purse import KINDS, Kind, Purse
from edgemux.edge.vigil import Standing
from edgemux.wire.events import Event, Name
from edgemux.wire.spell import Overload, Spell

# A limited rate is spent to the last token, again and again: it has come back when it stayed for so long.
REFILLED_S = 5.0
OF_HEADS = (Alone.HEAD_WRONG, Alone.HEAD_FAILED, Alone.MEMORY)


class Notices:
    """Remembers how things stood. Of one device: its applications share clouds, budgets and refusals."""

    def __init__(self, agents: Sequence[Agent]) -> None:
        self._agents = agents
        self._lost = Spell()
        self._overload = Overload()
        self._breakers: dict[int, Spell] = {}
        self._budgets = {kind: Spell(REFILLED_S) for kind in KINDS}
        self._unserved: set[tuple[Name, int]] = set()
        # Heads that could be used when this was made, by model and split; others were told of then.
        self._heads: dict[tuple[Name, str], Spell] = {}
        # By model; what it stood at when this was made needs no line.
        self._alarms = {_model(agent): _alarm(agent) for agent in agents}
        self._levels = {_model(agent): agent.planned for agent in agents}

    def look(self, now_s: float) -> Iterator[Event]:
        """What there is to say of the time since the last look."""
        first = self._agents[0]
        if first.cloud is not None:
            yield from self._clouds(first.cloud.peers, now_s)
            yield from self._serving()
        yield from self._spent(first.purse, now_s)
        refusal = self._overload.look(sum(agent.metrics.overloads for agent in self._agents), now_s)
        if refusal is not None:
            yield refusal
        for agent in self._agents:
            yield from self._certificate(agent)
            yield from self._level(agent)
            yield from self._splits(agent, now_s)

    def _splits(self, agent: Agent, now_s: float) -> Iterator[Event]:
        """What has become of heads; of tails it is said where it is found out, and of unfit heads, too."""
        if agent.splits is None:
            return
        model = _model(agent)
        for name, half in agent.splits.halves.items():
            spell = self._heads.setdefault((model, name), Spell())
            alone = half.alone(agent.family.resident, now_s)
            change = spell.look(alone in OF_HEADS and half.head.unfit is None, now_s)
            if change and alone is not None:
                yield SplitLeftAlone(model=model, split=Name(name), reason=Name(alone.value))
            elif change is False:
                yield SplitUsable(model=model, split=Name(name), seconds=spell.seconds)

    def _clouds(self, peers: Sequence[CloudExecutor], now_s: float) -> Iterator[Event]:
        for number, peer in enumerate(peers):
            spell = self._breakers.setdefault(number, Spell())
            change = spell.look(peer.state(now_s) is not State.CLOSED, now_s)
            if change:
                yield BreakerOpened(peer=number, failures=peer.breaker.failures, cause=Name(peer.outcome))
            elif change is False:
                yield BreakerClosed(peer=number, seconds=spell.seconds)
        closed = [peer for peer in peers if peer.state(now_s) is State.CLOSED]
        change = self._lost.look(all(peer.incompatible for peer in closed), now_s)
        if change:
            yield CloudLost(reason=Name(next((peer.unserved for peer in closed if peer.unserved), "breaker")))
        elif change is False:
            yield CloudFound(seconds=self._lost.seconds)

    def _serving(self) -> Iterator[Event]:
        """That it does not is said where it is found out, with the reason."""
        for agent in self._agents:
            for number, peer in enumerate(() if agent.cloud is None else agent.cloud.peers):
                key = _model(agent), number
                if peer.incompatible:
                    self._unserved.add(key)
                elif key in self._unserved:
                    self._unserved.discard(key)
                    yield CloudServes(peer=number, model=key[0])
            yield from self._tails(agent)

    def _tails(self, agent: Agent) -> Iterator[Event]:
        for half in () if agent.splits is None else agent.splits.halves.values():
            for number, peer in enumerate(half.tail.peers):
                key = Name(peer.agreement.model), number
                if peer.incompatible:
                    self._unserved.add(key)
                elif key in self._unserved:
                    self._unserved.discard(key)
                    yield CloudServes(peer=number, model=key[0])

    def _spent(self, purse: Purse, now_s: float) -> Iterator[Event]:
        left = purse.left(now_s)
        for kind, spell in self._budgets.items():
            change = spell.look(_exhausted(kind, left[kind], purse), now_s)
            if change:
                yield BudgetExhausted(budget=Name(kind))
            elif change is False:
                yield BudgetRefilled(budget=Name(kind), seconds=spell.seconds)

    def _certificate(self, agent: Agent) -> Iterator[Event]:
        model, before, now = _model(agent), self._alarms[_model(agent)], _alarm(agent)
        if now == before:
            return
        self._alarms[model] = now
        standing, reason, levels = now
        if standing is Standing.RE_CERTIFIED:
            yield ReCertified(model=model, levels=levels)
        elif standing is Standing.WITHDRAWN:
            yield CertificateWithdrawn(model=model, reason=Name(reason))
        elif reason:
            yield DriftAlarmed(model=model, reason=Name(reason))

    def _level(self, agent: Agent) -> Iterator[Event]:
        model = _model(agent)
        before, now = self._levels[model], agent.planned
        if now != before:
            self._levels[model] = now
            yield LevelChanged(model=model, to=now, before=before, share=agent.share)


def _model(agent: Agent) -> Name:
    return Name(agent.manifest.name)


def _alarm(agent: Agent) -> tuple[Standing, str, int]:
    state = agent.vigil.state
    return state.standing, "" if state.reason is None else state.reason.value, len(state.recertified)


def _exhausted(kind: Kind, left: float, purse: Purse) -> bool:
    if math.isinf(left):
        return False
    return left <= 0 if kind == "joules" else left < purse.one_offload[kind]
