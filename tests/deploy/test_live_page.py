"""The live page in a browser, in front of agents and clouds that really run, with traffic."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from edgemux.multiplexer.bundle import Bundle, seal
from tests.split_bundle import COARSE, DEEP, EXACT
from tests.system.conftest import Server, Serving, serving  # noqa: F401 - a fixture

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(240)]

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENT_MS = 60_000
MOST_BYTES = 150_000
TOKEN = "a-token-of-more-than-16"
# A class of the bundle's: it is drawn as it is written.
HOSTILE = '<img src=x onerror="window.broken=1">'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, whose classes have names that no page should take for more than that."""
    folder = tmp_path_factory.mktemp("hostile") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = Bundle.open(folder).manifest
    seal(folder, msgspec.structs.replace(manifest, classes=tuple(f"{HOSTILE} {i}" for i in range(10))))
    return folder


class Traffic:
    """Asks an agent again and again until the block ends; what fails does not matter here."""

    def __init__(self, server: Server, images: Any, models: tuple[str, ...]) -> None:
        self._server, self._images, self._models = server, images, models
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        client = self._server.client()
        for number in range(1_000_000):
            if self._over.wait(0.04):
                break
            with contextlib.suppress(Exception):
                client.ask(
                    self._images[number % len(self._images)][None],
                    self._models[number % len(self._models)],
                    client_timeout=2.0,
                )
        client.close()


@pytest.fixture(scope="module")
def images(tiny_bundle: Path) -> Any:
    return Bundle.open(tiny_bundle).arrays("samples.npz")["images"]


@pytest.fixture(scope="module")
def cloud(bundle: Path, serving: Serving) -> Iterator[Server]:  # noqa: F811
    with serving("cloud", "--bundle", str(bundle)) as server:
        yield server


@pytest.fixture(scope="module")
def agent(bundle: Path, images: Any, cloud: Server, serving: Serving) -> Iterator[Server]:  # noqa: F811
    """An agent in front of the cloud, with traffic."""
    with (
        serving("edge", "--bundle", str(bundle), "--cloud", cloud.grpc) as server,
        Traffic(server, images, ("fashion-mnist",)),
    ):
        yield server


class Look(msgspec.Struct):
    """A page that is open, and what it has asked for and complained about."""

    page: Page
    responses: list[Any]
    complaints: list[str]


Looking = Callable[..., Any]


@pytest.fixture
def look(browser: Browser) -> Iterator[Looking]:
    """``look(server, **how)``: its live page in a browser with nothing remembered, for the length of the test."""
    with contextlib.ExitStack() as stack:

        def opened(server: Server, width: int = 1360, **how: Any) -> Look:
            how.setdefault("color_scheme", "light")
            context = browser.new_context(viewport={"width": width, "height": 900}, **how)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(PATIENT_MS)
            seen = Look(page, [], [])
            # The library hangs something on what it is given, which a built-in method does not bear.
            page.on("response", lambda response: seen.responses.append(response))  # noqa: PLW0108
            page.on("pageerror", lambda error: seen.complaints.append(str(error)))
            page.on("console", lambda said: seen.complaints.append(said.text) if said.type != "log" else None)
            page.on("dialog", lambda dialog: seen.complaints.append(dialog.message))
            page.goto(f"http://{server.http}/")
            return seen

        yield opened


def rows(page: Page, title: str) -> Any:
    """The rows of the table in the card of that title."""
    return page.get_by_role("region", name=title, exact=True).locator("tbody tr")


def said(page: Page, words: str) -> None:
    """Wait until these words are in the region that is read out."""
    expect(page.locator("#announcer")).to_contain_text(words, timeout=PATIENT_MS)


def test_inputs_appear_with_picture_answer_route_and_reason(agent: Server, look: Looking) -> None:
    seen = look(agent)
    page = seen.page
    first = rows(page, "The last inputs").first
    first.wait_for()
    assert HOSTILE in first.locator(".label").inner_text()
    assert first.locator("code").inner_text() in ("confident", "deferred", "offloaded", "device_busy")
    drawn = first.locator("canvas").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    )
    pixels = np.array(drawn, np.uint8).reshape(28, 28, 4)
    assert pixels[..., :3].std() > 10
    assert (pixels[..., 3] == 255).all()
    expect(rows(page, "Where inputs go, and why").first).to_be_visible()
    page.wait_for_function("document.querySelectorAll('.u-wrap canvas').length === 2")
    # What a model calls its classes is text.
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 1
    assert seen.complaints == []


def test_everything_comes_from_the_server_itself_and_is_small(agent: Server, look: Looking) -> None:
    seen = look(agent)
    rows(seen.page, "The last inputs").first.wait_for()
    assert {urllib.parse.urlsplit(response.url).netloc for response in seen.responses} == {agent.http}
    pages = [each for each in seen.responses if "live.json" not in each.url]
    assert all(each.status == 200 for each in pages)
    assert len(pages) >= 9
    assert sum(len(each.body()) for each in pages) < MOST_BYTES
    assert seen.complaints == []


def test_a_cloud_that_dies_is_shown_and_said(bundle: Path, images: Any, serving: Serving, look: Looking) -> None:  # noqa: F811
    with (
        serving("cloud", "--bundle", str(bundle)) as cloud,
        serving("edge", "--bundle", str(bundle), "--cloud", cloud.grpc) as agent,
        Traffic(agent, images, ("fashion-mnist",)),
    ):
        page = look(agent).page
        facts = page.locator(".facts")
        expect(facts).to_contain_text("Breaker closed", timeout=PATIENT_MS)
        # Nothing is read out while nothing happens.
        assert page.locator("#announcer").inner_text() == ""
        cloud.popen.kill()
        said(page, "Breaker opened")
        expect(facts).to_contain_text(re.compile("Breaker (open|half open)"), timeout=PATIENT_MS)
        expect(page.locator(".events")).to_contain_text("Breaker opened")
        expect(rows(page, "Where inputs go, and why").filter(has_text="breaker")).to_be_visible(timeout=PATIENT_MS)
        agent.popen.kill()
        expect(page.locator("#banner")).to_contain_text("Nobody answers", timeout=PATIENT_MS)
        said(page, "does not answer any more")
        expect(page.locator("#beat")).to_have_text("No answer")


def test_splits_are_shown_with_which_way_is_taken_and_why_others_are_left_alone(
    split_bundle: Path,
    images: Any,
    serving: Serving,  # noqa: F811
    look: Looking,
    tmp_path: Path,
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text('[split]\nuse = "always"\nmax_loss = 0.12\n')
    with (
        serving("cloud", "--bundle", str(split_bundle)) as cloud,
        serving("edge", "--bundle", str(split_bundle), "--cloud", cloud.grpc, "--config", str(config)) as agent,
        Traffic(agent, images, ("fashion-mnist",)),
    ):
        seen = look(agent, 390)
        ways = rows(seen.page, "Ways to the cloud")
        chosen = ways.filter(has_text="✓ chosen")
        expect(chosen).to_have_text(re.compile(f"^({COARSE}|{EXACT})"), timeout=PATIENT_MS)
        expect(ways.filter(has_text=DEEP)).to_contain_text("may lose more accuracy")
        expect(ways.filter(has_text="the whole input")).to_contain_text("could be chosen")
        expect(rows(seen.page, "Where inputs go, and why").filter(has_text="split").first).to_be_visible()
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [each for each in seen.complaints if "Failed to load" not in each] == []


def test_only_what_happens_is_read_out_and_not_every_second(agent: Server, look: Looking) -> None:
    page = look(agent).page
    rows(page, "The last inputs").first.wait_for()
    page.evaluate(
        """() => {
          window.spoken = [];
          const note = (records) => records.forEach((record) => window.spoken.push(record.target.textContent));
          const every = { childList: true, characterData: true, subtree: true };
          for (const node of document.querySelectorAll("[aria-live], [role=alert], [role=status]"))
            new MutationObserver(note).observe(node, every);
        }"""
    )
    before = page.locator("#clock").inner_text()
    page.wait_for_function("before => document.querySelector('#clock').textContent !== before", arg=before)
    page.wait_for_timeout(2500)
    spoken = page.evaluate("window.spoken")
    assert all(re.match("Breaker|fashion-mnist: ", words) for words in spoken), spoken


@pytest.mark.parametrize("width", [320, 390, 780, 1100])
def test_no_width_needs_to_be_scrolled_sideways(agent: Server, look: Looking, width: int) -> None:
    page = look(agent, width).page
    rows(page, "The last inputs").first.wait_for()
    rows(page, "How long answers take").first.wait_for()
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((node) =>
          node.getBoundingClientRect().right > innerWidth + 0.5 && !node.closest(".hidden, .skip, thead"))
          .map((node) => node.outerHTML.slice(0, 120))"""
    )
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_colours_follow_the_system_until_somebody_chooses(agent: Server, look: Looking) -> None:
    dark, light = (look(agent, color_scheme=scheme).page for scheme in ("dark", "light"))
    ground = "getComputedStyle(document.body).backgroundColor"
    assert dark.evaluate(ground) != light.evaluate(ground)
    night = dark.evaluate(ground)
    light.get_by_role("button", name="Dark colours").click()
    assert light.evaluate(ground) == night
    light.reload()
    assert light.evaluate(ground) == night
    light.get_by_role("button", name="Light colours").click()
    assert light.evaluate(ground) != night


def test_the_keyboard_reaches_everything_and_shows_where_it_is(agent: Server, look: Looking) -> None:
    page = look(agent).page
    rows(page, "The last inputs").first.wait_for()
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => { const node = document.activeElement;
              const name = node.getAttribute("aria-label") || node.textContent;
              return [name, getComputedStyle(node).outlineStyle] }"""
        )
        assert focus[1] == "solid", focus
        reached.append(focus[0])
    names = ["Skip to the content", "Pause", "Dark colours", "Events", "/status", "/v2", "uPlot"]
    assert reached == names
    page.locator("#pause").focus()
    page.keyboard.press("Enter")
    assert page.locator("#pause").get_attribute("aria-pressed") == "true"
    expect(page.locator("#beat")).to_have_text("Paused")
    page.keyboard.press("Space")
    expect(page.locator("#beat")).to_have_text("Live", timeout=PATIENT_MS)


def test_the_page_is_a_document_with_names_for_its_parts(agent: Server, look: Looking) -> None:
    page = look(agent).page
    rows(page, "The last inputs").first.wait_for()
    for landmark in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    headings = page.locator("h1, h2, h3").all_inner_texts()
    assert headings[0].startswith("edgemux")
    parts = ("Right now", "Cloud and link", "Certificate and drift", "Levels", "Budgets", "The device")
    for title in (*parts, "How long answers take", "What has happened"):
        expect(page.get_by_role("region", name=title, exact=True)).to_have_count(1)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("table")].filter((table) => !table.caption?.textContent.trim()).length"""
    )
    assert unnamed == 0
    # A chart is a picture with words; the table under it has the numbers.
    charts = page.get_by_role("img", name=re.compile("Inputs answered a second|Time from arrival"))
    expect(charts).to_have_count(2)


def test_a_server_with_tokens_asks_for_one_and_keeps_it_in_the_tab(
    bundle: Path,
    serving: Serving,  # noqa: F811
    look: Looking,
    tmp_path: Path,
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    config = tmp_path / "edge.toml"
    config.write_text(f'bundle = "{bundle}"\n[listen]\ntoken_file = "{tokens}"\n')
    with serving("edge", "--config", str(config)) as agent:
        seen = look(agent)
        page = seen.page
        page.get_by_label("Token", exact=True).fill("not-one-of-its-tokens")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("does not know this token", timeout=PATIENT_MS)
        assert page.evaluate("sessionStorage.length") == 0
        page.get_by_label("Token", exact=True).fill(TOKEN)
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("region", name="Right now")).to_be_visible(timeout=PATIENT_MS)
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        assert not [response.url for response in seen.responses if TOKEN in response.url]
        page.reload()
        expect(page.get_by_role("region", name="Right now")).to_be_visible(timeout=PATIENT_MS)
        page.get_by_role("button", name="Forget the token").click()
        expect(page.get_by_label("Token", exact=True)).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0
        # Chromium itself writes each refusal to the console; nothing else is there.
        assert all("401" in complaint for complaint in seen.complaints)


def test_several_applications_are_told_apart(bundle: Path, images: Any, serving: Serving, look: Looking) -> None:  # noqa: F811
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        for name in ("door", "till"):
            config.write(f'[[applications]]\nbundle = "{bundle}"\nname = "{name}"\n')
        config.flush()
        with serving("edge", "--config", config.name) as agent, Traffic(agent, images, ("door", "till")):
            page = look(agent).page
            expect(rows(page, "Levels")).to_have_count(2, timeout=PATIENT_MS)
            shown = rows(page, "The last inputs")
            for name in ("door", "till"):
                expect(shown.filter(has_text=name).first).to_be_visible(timeout=PATIENT_MS)
            page.get_by_label("Application").select_option("till")
            expect(shown.filter(has_text="door")).to_have_count(0)
            expect(shown.filter(has_text="till").first).to_be_visible(timeout=PATIENT_MS)


def test_the_cloud_s_page_shows_models_batches_and_refusals(
    bundle: Path, cloud: Server, images: Any, look: Looking
) -> None:
    seen = look(cloud)
    page = seen.page
    with Traffic(cloud, images, ("fashion-mnist",)):
        expect(rows(page, "Models")).to_contain_text("fashion-mnist", timeout=PATIENT_MS)
        expect(rows(page, "Batch sizes").first).to_be_visible(timeout=PATIENT_MS)
        expect(rows(page, "Requests").first).to_contain_text("answered")
        expect(rows(page, "Refusals")).to_have_count(4)
        page.wait_for_function("parseFloat(document.querySelector('.big').textContent) > 0")
    assert seen.complaints == []


def test_a_page_of_one_of_several_processes_says_so(bundle: Path, serving: Serving, look: Looking) -> None:  # noqa: F811
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(f'bundle = "{bundle}"\nprocesses = 2\n')
        config.flush()
        with serving("cloud", "--config", config.name) as cloud:
            page = look(cloud).page
            expect(page.locator("#banner")).to_contain_text("one of 2 processes", timeout=PATIENT_MS)
            number = page.locator("#about").inner_text()
            number = re.search(r"process (\d+)", number)[1]  # type: ignore[index]
            until_s = time.monotonic() + 4
            while time.monotonic() < until_s:
                assert f"process {number}" in page.locator("#about").inner_text()
                page.wait_for_timeout(500)
