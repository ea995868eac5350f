"""The live page as it is served: what it is made of, who may see what, and that it can be read."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemux.wire.http import App, Page, Reply, Request
from edgemux.wire.live import Live, after, assets, is_own_name
from edgemux.wire.security import Guard, ServerTls

TOKEN = "a-token-of-more-than-16"
MOST_BYTES = 150_000
# Text on what it stands on; both are names of the style's colours.
ON_CARD = ("text", "muted", "edge", "cloud", "warn", "bad", "link")
READ = [
    *((ink, ground) for ink in ON_CARD for ground in ("card", "ground", "inset")),
    ("text", "button"),
    ("card", "text"),  # a button that is pressed
    ("card", "bad"),  # the banner
]
# What has to be seen, and is not read (WCAG 2.1, 1.4.11).
SEEN = [("focus", "card"), ("focus", "ground"), ("muted", "card")]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    return Guard(ServerTls(), tokens)


def app_of(guard: Guard, data: Any = lambda number: {"kind": "edge", "asked": number}) -> App:
    return App({"/status": lambda: Page(200, {})}, guard.gate, Live(data, guard))


def ask(app: App, target: str, method: str = "GET", token: str | None = None, host: str = "localhost:9000") -> Reply:
    headers = {b"host": host.encode()}
    if token is not None:
        headers[b"authorization"] = f"Bearer {token}".encode()
    request = Request(method.encode(), target.encode(), headers)
    reply = app.look(request) or app.answer(request)
    assert isinstance(reply, Reply)
    return reply


def told(reply: Reply) -> Any:
    return json.loads(b"".join(reply.content))


def test_all_that_is_served_together_is_small() -> None:
    sizes = {name: len(content) for name, (content, _) in assets().items()}
    assert sum(sizes.values()) < MOST_BYTES, sizes


def test_the_page_is_part_of_the_package_with_the_licence_of_what_is_not_ours() -> None:
    folder = files("edgemux.wire").joinpath("page")
    names = {each.name for each in folder.iterdir()}
    assert {"index.html", "page.css", "page.js", "uPlot.min.js", "uPlot.css", "uPlot-LICENSE.txt"} <= names
    assert "MIT License" in folder.joinpath("uPlot-LICENSE.txt").read_text()
    for content, kind in assets().values():
        assert kind.endswith("; charset=utf-8")
        content.decode()


def test_everything_that_the_page_asks_for_is_there() -> None:
    there = assets()
    page = there["index.html"][0].decode()
    wanted = set(re.findall(r'(?:src|href)="assets/([^"]+)"', page))
    for name in ("page.js", "edge.js", "cloud.js", "draw.js", "history.js", "words.js"):
        wanted |= set(re.findall(r'from "\./([^"]+)"', there[name][0].decode()))
    assert wanted == set(there) - {"index.html"}


def test_nothing_of_it_comes_from_elsewhere_or_is_markup_of_somebody_else_s() -> None:
    for name, (content, _) in assets().items():
        source = content.decode()
        if name.startswith("uPlot"):
            continue
        urls = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", source))
        assert urls <= {"http://www.w3.org/2000/svg"}, name
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert way not in source, f"{name}: {way}"
    page = assets()["index.html"][0].decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))


def test_the_shell_is_open_to_all_and_its_data_is_not(guard: Guard) -> None:
    app = app_of(guard)
    for path in ("/", "/assets/page.js", "/assets/uPlot.min.js"):
        assert ask(app, path).status == 200
    for path in ("/live.json", "/live.json?after=3", "/status", "/assets", "/assetsx"):
        assert ask(app, path).status == 401, path
    assert ask(app, "/live.json", token="another-token-of-16").status == 401
    reply = ask(app, "/live.json?after=7", token=TOKEN)
    assert reply.status == 200
    body = told(reply)
    assert body["asked"] == 7
    assert body["security"]["token"] is True
    assert body["release"]


def test_types_and_headers_keep_others_out(guard: Guard) -> None:
    app = app_of(guard)
    for path, kind in (("/", "text/html"), ("/assets/page.css", "text/css"), ("/assets/page.js", "text/javascript")):
        reply = ask(app, path)
        headers = dict(reply.headers)
        assert reply.content_type == f"{kind}; charset=utf-8".encode()
        policy = headers[b"content-security-policy"].decode()
        for part in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"):
            assert part in policy
        assert "unsafe" not in policy
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"cache-control"] == b"no-store"


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("HEAD", "/", 200),
        ("HEAD", "/assets/page.js", 200),
        ("POST", "/", 405),
        ("DELETE", "/live.json", 405),
        ("GET", "/assets/", 404),
        ("GET", "/assets/../live.py", 404),
        ("GET", "/assets/%2e%2e/live.py", 404),
        ("GET", "/assets//etc/passwd", 404),
        ("GET", "/index.html", 404),
    ],
)
def test_paths_and_methods_beside_the_page_get_nothing(guard: Guard, method: str, target: str, status: int) -> None:
    assert ask(app_of(guard), target, method, TOKEN).status == status


def test_without_tokens_only_a_name_of_the_own_network_gets_data(guard: Guard) -> None:
    unguarded = app_of(Guard(ServerTls(), None))
    for host in (
        "localhost:9000",
        "127.0.0.1:9000",
        "[::1]:9000",
        "192.0.2.7",
        "pi:9000",
        "pi.local",
        "x.svc.internal",
    ):
        assert ask(unguarded, "/live.json", host=host).status == 200, host
    for host in ("evil.example:9000", "localhost.evil.example", "", "127.0.0.1.evil.example:9000"):
        reply = ask(unguarded, "/live.json", host=host)
        assert reply.status == 421, host
        assert "token" in told(reply)["error"]
        assert ask(unguarded, "/", host=host).status == 200
    assert ask(app_of(guard), "/live.json", token=TOKEN, host="evil.example").status == 200


@given(st.ip_addresses(), st.integers(0, 65535))
def test_an_address_is_nobody_s_name(address: Any, port: int) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    assert is_own_name(host.encode())
    assert is_own_name(f"{host}:{port}".encode())


@given(st.binary(max_size=60))
def test_nonsense_instead_of_a_name_or_a_number_is_borne(given_bytes: bytes) -> None:
    assert is_own_name(given_bytes) in (True, False)
    assert 0 <= after(b"/live.json?after=" + given_bytes) < 10**18


@given(st.integers(0, 10**18 - 1))
def test_the_number_of_the_latest_input_is_read(number: int) -> None:
    assert after(b"/live.json?x=1&after=%d" % number) == number


def test_a_look_without_leave_is_no_look(guard: Guard) -> None:
    asked: list[int] = []
    app = app_of(guard, lambda number: {"seen": asked.append(number)})
    ask(app, "/live.json")
    ask(app, "/")
    assert asked == []


# --- colours


def _colours() -> tuple[dict[str, str], dict[str, str]]:
    """The style's colours by name, light and dark, of those that are opaque."""
    style = assets()["page.css"][0].decode()
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", style)
    alike = re.findall(r"--(c-[\w-]+): (#[0-9a-f]{6});", style)
    light = {name: light for name, light, _ in pairs} | dict(alike)
    return light, {name: dark for name, _, dark in pairs} | dict(alike)


def _luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    r, g, b = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_everything_can_be_read_and_seen_in_both_themes(theme: int) -> None:
    colours = _colours()[theme]
    poor = {(ink, on): round(_contrast(colours[ink], colours[on]), 2) for ink, on in READ}
    assert {pair: ratio for pair, ratio in poor.items() if ratio < 4.5} == {}
    areas = [(name, "card") for name in colours if name.startswith("c-")]
    assert len(areas) >= 9
    faint = {(ink, on): round(_contrast(colours[ink], colours[on]), 2) for ink, on in [*SEEN, *areas]}
    assert {pair: ratio for pair, ratio in faint.items() if ratio < 3} == {}


def test_every_word_of_the_servers_has_a_meaning_on_the_page() -> None:
    from edgemux.cloud.admission import Refused
    from edgemux.cloud.statistics import Outcome
    from edgemux.edge.breaker import State
    from edgemux.edge.budget import Readings
    from edgemux.edge.loading import Fallback
    from edgemux.edge.metrics import REFUSALS
    from edgemux.edge.vigil import Standing, Withdrawal
    from edgemux.multiplexer.domain import Reason

    words = assets()["words.js"][0].decode()
    blocks = dict(re.findall(r"export const (\w+) = \{\n(.*?)\n\};", words, re.DOTALL))
    keys = {name: set(re.findall(r"^  (\w+):", block, re.MULTILINE)) for name, block in blocks.items()}
    shed = {Reason.EXPIRED.value, Reason.OVERLOADED.value, Reason.NO_ROUTE.value}
    assert keys["REASONS"] == {reason.value for reason in Reason} - shed
    assert set(REFUSALS) | shed == keys["REFUSALS"]
    assert keys["FALLBACKS"] == {fallback.value for fallback in Fallback}
    assert keys["STANDINGS"] == {standing.value for standing in Standing}
    assert keys["WITHDRAWALS"] == {reason.value for reason in Withdrawal}
    assert keys["BREAKERS"] == {state.name.lower() for state in State}
    assert keys["OUTCOMES"] == {outcome.value for outcome in Outcome}
    assert keys["REFUSED"] == {reason.value for reason in Refused}
    assert keys["READINGS"] | {"cpu_count"} == set(Readings.__struct_fields__)
