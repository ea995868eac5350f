"""Rows 26 to 30: certificates that are out of date or of strangers, tokens that do not count, pairs half written."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from edgemux.multiplexer.bundle import Bundle
from tests.authority import DAY, Authority, Issued
from tests.simulated_cloud import SimulatedCloud, listening
from tests.system.faults.load import Load
from tests.system.faults.proxy import Backstage, FaultProxy
from tests.system.faults.rows import BUSY_RECOVERY_S, RECOVERY_S, USUAL, Row, check
from tests.system.faults.stage import Agent, Pictures, Scene, agent_process, found_by
from tests.system.faults.table import Found

TLS, DENIED = frozenset({"cloud_tls"}), frozenset({"cloud_denied"})
GONE = frozenset({"cloud_unreachable"})
TOKEN, OTHER_TOKEN = "a-token-of-twenty-ch", "another-token-of-27-letters"
# The agent looks at its files once in a second; a refused token makes it look at once, but once in five.
REREAD_S, REFRESH_S = 1.0, 5.0


class Secured(Scene):
    """An agent that speaks TLS with a certificate and a token of its own, and clouds of every kind to lead it to."""

    def __init__(
        self, backstage: Backstage, agent: Agent, seen: Pictures, proxy: FaultProxy, clouds: dict[str, SimulatedCloud]
    ) -> None:
        super().__init__(backstage, agent, seen)
        self.proxy = proxy
        self.clouds = clouds
        self.folder = Path()

    def lead_to(self, name: str) -> None:
        """Let the agent's next connection end at this cloud."""
        self.proxy.lead_to(self.clouds[name].address)
        self.proxy.reset()

    def mend(self) -> None:
        """Lead to the cloud that is as it should be."""
        self.lead_to("good")

    def own(self, issued: Issued) -> None:
        """Give the agent a certificate of its own, and another connection to show it."""
        shutil.copyfile(issued.cert, self.folder / "own.pem")
        shutil.copyfile(issued.key, self.folder / "own.key")


def credentials(issued: Issued, client_ca: Path | None = None) -> grpc.ServerCredentials:
    pair = [(issued.key.read_bytes(), issued.cert.read_bytes())]
    if client_ca is None:
        return grpc.ssl_server_credentials(pair)
    return grpc.ssl_server_credentials(pair, client_ca.read_bytes(), require_client_auth=True)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """The one that both sides trust, and a stranger."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by the openssl command line")
    return Authority(tmp_path_factory.mktemp("ca")), Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def secured(
    authorities: tuple[Authority, Authority],
    serving: Any,
    tiny_bundle: Path,
    seen: Pictures,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Secured]:
    ours, stranger = authorities
    good = ours.issue("good")
    secure = {
        "good": credentials(good, ours.ca),
        "expired": credentials(ours.issue("expired", last=-datetime.timedelta(hours=1))),
        "not yet valid": credentials(ours.issue("early", first=DAY)),
        "of a stranger": credentials(stranger.issue("stranger")),
        "for another name": credentials(ours.issue("elsewhere", "DNS:elsewhere.example")),
        "strict": credentials(good, stranger.ca),
        "plaintext": None,
    }
    folder = tmp_path_factory.mktemp("secured")
    with contextlib.ExitStack() as stack:
        backstage = stack.enter_context(contextlib.closing(Backstage()))
        clouds = {}
        for name, how in secure.items():
            made = backstage.call(SimulatedCloud, Bundle.open(tiny_bundle))
            clouds[name] = backstage.enter(listening(made, how), stack)
        clouds["good"].ready = True
        clouds["good"].answer = with_token(clouds["good"], TOKEN)
        proxy = FaultProxy.open(backstage, stack)
        proxy.lead_to(clouds["good"].address)
        scene = Secured(backstage, None, seen, proxy, clouds)  # type: ignore[arg-type]
        scene.folder = folder
        scene.own(ours.issue("agent", "DNS:agent"))
        (folder / "token").write_text(TOKEN)
        cloud = {"token_file": str(folder / "token")}
        tls = {"ca": str(ours.ca), "cert": str(folder / "own.pem"), "key": str(folder / "own.key")}
        more = {"cloud": cloud, "cloud.tls": tls, "breaker": {"ramp_s": 0.5}}
        scene.agent = stack.enter_context(agent_process(serving, folder, tiny_bundle, proxy.address, **more))
        yield scene


@pytest.fixture
def safe(secured: Secured) -> Secured:
    secured.well()
    return secured


def with_token(cloud: SimulatedCloud, token: str) -> Callable[[Any, Any], Any]:
    """Answer those who bring the token."""

    async def answer(request: Any, context: Any) -> Any:
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        return await cloud.well(request, context)

    return answer


STRANGERS = {
    26: {"expired": "has expired", "not yet valid": "not valid yet"},
    27: {
        "of a stranger": "nobody whom we trust",
        "for another name": "another name",
        "plaintext": "does not speak TLS",
    },
    28: {"strict": ""},
}


@pytest.mark.parametrize(
    ("number", "kind"), [(number, kind) for number, kinds in STRANGERS.items() for kind in kinds], ids=str
)
def test_a_cloud_that_cannot_be_trusted_gets_nothing_and_everybody_an_answer(
    number: int, kind: str, safe: Secured, report: Callable[[Found], None]
) -> None:
    before = len(safe.agent.server.errors())
    trouble: list[str] = []

    def watch(scene: Secured, load: Load) -> None:
        load.more(120)
        trouble.append(str(scene.agent.server.get("/status")[1]["cloud"]["security"]["trouble"]))

    fault = {28: "own certificate refused"}.get(number, f"server certificate {kind}")
    # What is under way when the connection is cut finds the cloud unreachable, which can be enough for the breaker;
    # then only its probes meet the certificate, and the log and the status page say what they met.
    row = Row[Secured](number, fault, lambda s: s.lead_to(kind), TLS | GONE, during=watch)
    check(row, safe, report)
    assert safe.clouds[kind].seen == 0
    said = STRANGERS[number][kind]
    assert said in safe.agent.server.errors()[before:]
    assert said in trouble[-1]


def test_row_28_an_own_certificate_that_has_expired_is_named(
    authorities: tuple[Authority, Authority], safe: Secured, report: Callable[[Found], None]
) -> None:
    ours, _ = authorities
    expired = ours.issue("old", "DNS:agent", last=-datetime.timedelta(hours=1))
    renewed = ours.issue("renewed", "DNS:agent")
    trouble: list[str] = []

    def watch(scene: Secured, load: Load) -> None:
        scene.own(expired)
        time.sleep(2 * REREAD_S)
        scene.proxy.reset()
        load.more(120)
        trouble.append(str(scene.agent.server.get("/status")[1]["cloud"]["security"]["trouble"]))

    row = Row[Secured](28, "own certificate expired", lambda s: None, TLS | GONE, during=watch,
                       repair=lambda s: s.own(renewed), recovery_s=RECOVERY_S + 2 * REREAD_S)  # fmt: skip
    check(row, safe, report)
    assert "own certificate" in trouble[-1]
    assert "expired" in trouble[-1]


def test_row_29_a_revoked_token_is_read_again_and_not_in_a_hot_loop(
    safe: Secured, report: Callable[[Found], None]
) -> None:
    cloud = safe.clouds["good"]
    with safe.load() as load:
        load.more(40)
        began_s, before = time.monotonic(), cloud.seen
        safe.backstage.call(setattr, cloud, "answer", with_token(cloud, OTHER_TOKEN))
        load.more(200)
        asked = cloud.seen - before
        (safe.folder / "token").write_text(OTHER_TOKEN)
        repaired_s = time.monotonic()
        recovery_s = safe.recovery_s(load, repaired_s)
        load.more(20)
    verdict = safe.judge(load)
    report(found_by(verdict, 29, "token revoked, then a new one", load, recovery_s, f"asked {asked} times in vain"))
    assert verdict.faults + verdict.refused == ()
    reasons = {e.reason for e in load.entries if e.answered and began_s <= e.sent_s < repaired_s}
    assert DENIED <= reasons <= DENIED | USUAL
    # Two to be sure, and those that were under way meanwhile.
    assert asked <= 10
    assert recovery_s <= REREAD_S + RECOVERY_S + BUSY_RECOVERY_S


def test_row_30_half_a_new_pair_is_not_taken_and_a_whole_one_is(
    authorities: tuple[Authority, Authority], safe: Secured, report: Callable[[Found], None]
) -> None:
    ours, _ = authorities
    new = ours.issue("rotated", "DNS:agent", last=5 * DAY)

    def until() -> str:
        return str(safe.agent.server.get("/status")[1]["cloud"]["security"]["own_certificate_until"])

    old = until()
    with safe.load(order=range(safe.pictures.doubtful)) as load:
        load.more(40)
        for content in (new.cert.read_bytes()[:200], b"", new.cert.read_bytes()):
            (safe.folder / "own.pem").write_bytes(content)
            load.more(round(80 * 1.5 * REREAD_S))
            assert until() == old
        (safe.folder / "own.key").write_bytes(new.key.read_bytes())
        load.wait(lambda: until() != old)
        load.more(80)
    verdict = safe.judge(load)
    report(found_by(verdict, 30, "own pair replaced, half by half", load))
    assert verdict.faults + verdict.refused == ()
    # Nobody noticed. (On a busy machine the cloud may be late now and then; that has another reason.)
    assert {e.reason for e in load.entries}.isdisjoint(TLS | DENIED | GONE)
    assert sum(e.route == "cloud" for e in load.entries) > len(load.entries) / 2
