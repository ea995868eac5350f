"""The agent and the cloud as processes, and a fault proxy between them."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemux.multiplexer.bundle import Bundle, Split, splits_of
from edgemux.multiplexer.chain import PROBABILITIES, Activations, Chain
from edgemux.multiplexer.onnx_model import OnnxModel
from tests.simulated_cloud import SimulatedCloud, listening
from tests.system.faults import ledgers
from tests.system.faults.ledgers import Entry, Verdict, percentile, read_log, reconcile
from tests.system.faults.load import Load
from tests.system.faults.proxy import Backstage, FaultProxy
from tests.system.faults.table import Found

# A device answer of the tiny bundle below this confidence is worth an offload: the cloud's is sure, its price 0.2.
DOUBTFUL = 0.75
# So many doubtful pictures in a row that the cloud answers: nothing keeps them on the device any more.
WELL = 25
_PATIENCE_S = 30.0
_ANSWERS = re.compile(
    r'edgemux_requests_total\{model="[^"]*",reason="(?P<reason>[^"]*)",route="(?P<route>[^"]*)",variant="(?P<variant>[^"]*)"\}'
)


class Pictures(msgspec.Struct):
    """What the load sends, UINT8 [n, 28, 28], and every variant's label of each.

    The first ``doubtful`` are those about which every level is in doubt, so that the cloud is wanted for them whatever
    the device can afford; of the others none is.
    """

    images: NDArray[np.uint8]
    labels: Mapping[str, Sequence[int]]
    doubtful: int

    @property
    def mixed(self) -> list[int]:
        """Two doubtful ones, then a sure one, and so on."""
        return [i // 3 * 2 + i % 3 if i % 3 < 2 else self.doubtful + i // 3 for i in range(self.doubtful // 2 * 3)]

    @classmethod
    def of(cls, folder: Path, images: NDArray[np.uint8]) -> Pictures:
        """``images`` as the bundle's own models answer them, less those about which the levels are not of one mind."""
        bundle = Bundle.open(folder)
        manifest = bundle.manifest
        name = manifest.inputs[0].name
        answers = {}
        for model in (*manifest.levels, manifest.cloud):
            chain = Chain([OnnxModel(bundle.read(path), path) for path in model.files], [name])
            answers[model.name] = chain.answer({name: images})
        halves = {split.name: _by_halves(bundle, split, {name: images}) for split in splits_of(manifest)}
        confidences = np.array([answers[level.name].max(axis=1) for level in manifest.levels])
        doubtful = np.flatnonzero((confidences < DOUBTFUL).all(axis=0))
        sure = np.flatnonzero((confidences > 1 - (1 - DOUBTFUL) / 2).all(axis=0))
        chosen = np.concatenate([doubtful, sure[: len(doubtful)]])
        every = (answers | halves).items()
        labels = {name: probabilities.argmax(axis=1)[chosen].tolist() for name, probabilities in every}
        return cls(images[chosen], labels, len(doubtful))


def _by_halves(bundle: Bundle, split: Split, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """What a split answers: the levels below its head, the head, the tail."""
    activations = Activations(tensors)
    if split.level:
        files = bundle.manifest.levels[split.level - 1].files
        Chain([OnnxModel(bundle.read(path), path) for path in files], list(tensors)).reach(split.level, activations)
    head, tail = (OnnxModel(bundle.read(path), path) for path in (split.head, split.tail))
    (sent,) = head.run({name: activations.pool[name] for name in head.inputs}, [split.sent.name])
    (answers,) = tail.run({split.sent.name: sent}, [PROBABILITIES])
    return answers


def write_config(path: Path, settings: Mapping[str, Any]) -> Path:
    """A TOML file of one table a section; values are numbers, text, booleans or lists of them."""
    top = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    for section, values in settings.items():
        if isinstance(values, Mapping):
            top += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path.write_text("\n".join(top) + "\n")
    return path


class Agent:
    """An agent process with a log of its requests."""

    def __init__(self, server: Any, log: Path) -> None:
        self.server = server
        self.log = log

    def ledger(self, client: Sequence[Entry]) -> ledgers.Agent:
        """What it has to say about the client's requests, once it has finished and written them."""
        ids = frozenset(entry.id for entry in client)
        answered = {entry.id for entry in client if entry.outcome == ledgers.ANSWERED}
        give_up_s = time.monotonic() + _PATIENCE_S
        while True:
            series = self.server.scrape()
            dropped = int(series.get("edgemux_log_dropped_total", 0))
            inflight = int(sum(value for name, value in series.items() if name.startswith("edgemux_inflight")))
            lines = read_log(self.log, ids)
            unwritten = len(answered - {line.id for line in lines})
            if (unwritten <= dropped and not inflight) or time.monotonic() > give_up_s:
                return ledgers.Agent(lines, dropped, inflight)
            time.sleep(0.02)

    def load(self, backstage: Backstage, seen: Pictures, **how: Any) -> Load:
        """A load on it of the pictures that are seen."""
        how.setdefault("order", seen.mixed)
        return Load(backstage, self.server.grpc, seen.images, pid=self.server.popen.pid, **how)

    def metric(self, name: str) -> float:
        """The sum of all series of a metric; 0 where there is none yet."""
        series = self.server.scrape()
        return sum(value for key, value in series.items() if key == name or key.startswith(name + "{"))

    def counted(self) -> Counter[tuple[str, str, str]]:
        """Its answers so far by route, variant and reason, as its metrics have them."""
        series = self.server.scrape()
        found = ((_ANSWERS.fullmatch(name), value) for name, value in series.items())
        return Counter({(m["route"], m["variant"], m["reason"]): int(value) for m, value in found if m})

    def breaker(self) -> int:
        """0 closed, 1 half-open, 2 open."""
        return int(self.metric("edgemux_breaker_state"))


class Scene:
    """An agent, a cloud, and something between them that can be broken and mended."""

    # Where the agent sends what it sends when all is well.
    away = "cloud"

    def __init__(self, backstage: Backstage, agent: Agent, seen: Pictures) -> None:
        self.backstage = backstage
        self.agent = agent
        self.pictures = seen

    def mend(self) -> None:
        """Repair what is between them."""
        raise NotImplementedError

    def heal(self) -> float:
        """Repair it; returns when, by the clock of ``Entry.sent_s``."""
        self.mend()
        return time.monotonic()

    def load(self, **how: Any) -> Load:
        """A load on the agent, by default of two pictures for which the cloud is wanted and one for which it is not."""
        return self.agent.load(self.backstage, self.pictures, **how)

    def well(self) -> None:
        """Everything works again, and the agent knows: nothing that the cloud is wanted for stays on the device."""
        self.mend()
        with self.load(order=range(self.pictures.doubtful)) as load:
            load.wait(lambda: self._all_away([e for e in list(load.entries) if e.outcome][-WELL:]), _PATIENCE_S)

    def _all_away(self, latest: Sequence[Entry]) -> bool:
        return len(latest) == WELL and all(entry.route == self.away for entry in latest)

    def recovery_s(self, load: Load, repaired_s: float, within_s: float = _PATIENCE_S) -> float:
        """Wait for a cloud answer to a request that was sent after the repair: seconds from the one to the other."""
        return load.first(lambda entry: entry.route == self.away, within_s, repaired_s).ended_s - repaired_s

    def judge(self, load: Load) -> Verdict:
        """Both ledgers of a load that is over."""
        return self.judge_of(self.agent, load)

    def judge_of(self, agent: Agent, load: Load) -> Verdict:
        """The same of another agent's load."""
        return reconcile(load.entries, agent.ledger(load.entries), self.pictures.labels)


class Stage(Scene):
    """A scene with a proxy in between, and a real cloud, or a simulated one that answers as it is told.

    ``cloud``: the real one's process; ``real``: its address.
    """

    def __init__(
        self,
        backstage: Backstage,
        proxy: FaultProxy,
        agent: Agent,
        cloud: Any,
        simulated: SimulatedCloud,
        seen: Pictures,
    ) -> None:
        super().__init__(backstage, agent, seen)
        self.proxy = proxy
        self.simulated = simulated
        self.cloud = cloud
        self.real = str(cloud.grpc)

    def mend(self) -> None:
        """Make the link clear."""
        self.proxy.heal()

    def lead_to_the_real_cloud(self) -> None:
        """Also cuts the connection to the simulated one."""
        self.lead_to(self.real)

    def lead_to_the_simulated_cloud(self) -> None:
        """Also cuts the connection to the real one."""
        self.lead_to(self.simulated.address)

    def lead_to(self, address: str) -> None:
        """Let the proxy lead to HOST:PORT, and cut what leads elsewhere."""
        self.proxy.lead_to(address)
        self.proxy.reset()

    def answer(self, how: Callable[[Any, Any], Any]) -> None:
        """What the simulated cloud does from now on."""
        self.backstage.call(setattr, self.simulated, "answer", how)

    def simulated_is_ready(self, ready: bool) -> None:
        """What the simulated cloud says when it is asked whether it serves the model."""
        self.backstage.call(setattr, self.simulated, "ready", ready)

    def well(self) -> None:
        """So is the simulated cloud."""
        self.answer(self.simulated.well)
        self.simulated_is_ready(True)
        super().well()


def found_by(
    verdict: Verdict, row: int, fault: str, load: Load, recovery_s: float | None = None, note: str = ""
) -> Found:
    """A verdict as a line for the table."""
    counts = {name: len(getattr(verdict, name)) for name in ("lost", "doubled", "late", "wrong", "refused")}
    p99_ms = percentile([entry.elapsed_s for entry in load.entries], 0.99) * 1000
    if verdict.starved:
        note = f"{note}; {len(verdict.starved)} starved of CPU".removeprefix("; ")
    return Found(row, fault, verdict.requests, p99_ms=p99_ms, recovery_s=recovery_s, note=note, **counts)


def settings(bundle: Path, address: str | None, log: Path, **more: Mapping[str, Any]) -> dict[str, Any]:
    """An agent's configuration: no audits, which would be offloads that nobody asked for."""
    chosen: dict[str, Any] = {"bundle": str(bundle), "audit_share": 0.0, "drift": {"enabled": False}}
    chosen["log"] = {"requests": str(log)}
    if address is not None:
        chosen["cloud"] = {"address": address}
    for section, values in more.items():
        chosen[section] = chosen.get(section, {}) | dict(values)
    return chosen


@contextlib.contextmanager
def agent_process(
    serving: Any, folder: Path, bundle: Path, address: str | None, **more: Mapping[str, Any]
) -> Iterator[Agent]:
    """An agent in front of ``address``, configured in ``folder``; ``more``: sections of its configuration."""
    log = folder / "requests.jsonl"
    config = write_config(folder / "agent.toml", settings(bundle, address, log, **more))
    with serving("edge", "--config", str(config)) as server:
        yield Agent(server, log)


@contextlib.contextmanager
def stage(serving: Any, folder: Path, bundle: Path, seen: Pictures, **more: Mapping[str, Any]) -> Iterator[Stage]:
    """A cloud, a simulated cloud, a proxy and an agent that has found the cloud."""
    with contextlib.ExitStack() as stack:
        backstage = stack.enter_context(contextlib.closing(Backstage()))
        proxy = FaultProxy.open(backstage, stack)
        cloud = stack.enter_context(serving("cloud", "--bundle", str(bundle)))
        simulated = backstage.enter(listening(backstage.call(SimulatedCloud, Bundle.open(bundle))), stack)
        proxy.lead_to(cloud.grpc)
        agent = stack.enter_context(agent_process(serving, folder, bundle, proxy.address, **more))
        set_up = Stage(backstage, proxy, agent, cloud, simulated, seen)
        set_up.well()
        yield set_up
