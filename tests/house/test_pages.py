"""The blocks of the documentation are run, as a reader would run them, or say why they cannot be."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from edgemux.cloud.events import CLOUD_EVENTS
from edgemux.edge.config import load
from edgemux.edge.events import EDGE_EVENTS
from edgemux.edge.server import serve
from edgemux.multiplexer.domain import Reason
from edgemux.multiplexer.errors import ArtifactError, ConfigError
from edgemux.wire.events import WIRE_EVENTS
from tests.page_blocks import ROOT, RUN, Reader, blocks, check_settings, parts, servers

DOCS = ROOT / "docs"
# Pages whose blocks are run, or checked, by tests of their own, and which.
ELSEWHERE = {
    "security.md": "tests/house/test_security_page.py",
    "bring-your-own.md": "tests/system/test_own_models.py",
}
# Of replies, beside the metrics: what follows edgemux_ in their parameters.
PARAMETERS = (
    "route",
    "variant",
    "reason",
    "score",
    "degraded",
    "peer",
    "crc32",
    "model_digest",
    "queue_ms",
    "compute_ms",
)
PAGES = sorted(path.name for path in DOCS.glob("*.md") if path.name not in ELSEWHERE)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.timeout(300)  # machines that are shared; the longest page takes 14 s of CPU
@pytest.mark.parametrize("name", [name for name in PAGES if any(block.runs for block in blocks(page(name)))])
def test_every_block_of_a_page_works_in_the_order_of_the_page(name: str, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        for line in servers(page(name)):
            reader.start(line)
        for block in blocks(page(name)):
            if block.runs or block.file:
                try:
                    reader.follow(block)
                except AssertionError as error:
                    raise AssertionError(f"docs/{name}, line {block.line}: {error}") from error


@pytest.mark.parametrize("name", PAGES)
def test_a_block_that_is_not_run_says_why_in_words(name: str) -> None:
    for block in blocks(page(name)):
        if block.not_run:
            assert block.language in RUN, f"line {block.line}: nobody would run it"
            assert len(block.not_run.split()) > 2, f"line {block.line}: {block.not_run}"


def test_what_is_tested_elsewhere_is_there() -> None:
    for name, test in ELSEWHERE.items():
        assert (DOCS / name).exists()
        assert (ROOT / test).exists()


def test_links_between_pages_lead_somewhere() -> None:
    for path in DOCS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)", text):
            there = (path.parent / target[0]).resolve() if target[0] else path
            assert there.exists(), f"{path.name}: {target[0]}"
            if target[1] and there.suffix == ".md":
                assert target[1][1:] in anchors(there.read_text(encoding="utf-8")), f"{path.name}: {''.join(target)}"


def anchors(text: str) -> set[str]:
    """Those of headings, as GitHub makes them, and those that are written out."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)"></a>', plain))


# --- the reader itself


def test_a_comment_before_a_block_says_that_it_is_not_run_or_is_a_file() -> None:
    not_run = "<!-- not run: needs a Pi -->\n```bash\nfalse\n```\n"
    file = "<!-- file: a.toml -->\n\n```toml\nx = 1\n```\n"
    first, second, third = blocks(f"{not_run}\n{file}```sh\ntrue\n```\n")
    assert (first.not_run, first.runs) == ("needs a Pi", False)
    assert (second.file, third.runs) == ("a.toml", True)
    with pytest.raises(ValueError, match="line 1"):
        blocks("<!-- not-run: because -->\n```bash\nfalse\n```\n")


def test_servers_that_a_page_takes_for_granted_are_named_above_it() -> None:
    assert servers("# Page\n") == []
    assert [line.split()[1] for line in servers("<!-- servers: edge cloud -->\n")] == ["cloud", "edge"]
    assert "--cloud" not in servers("<!-- servers: edge -->\n")[0]


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    for text in ("```bash\nfalse\ntrue\n```\n", "```sh\nfalse\ntrue\n```\n", "```python\n1 / 0\n```\n"):
        (block,) = blocks(text)
        folder = tmp_path / block.language
        folder.mkdir()
        with Reader(folder) as reader, pytest.raises(AssertionError):
            reader.follow(block)


def test_settings_that_neither_side_has_are_noticed() -> None:
    check_settings("[limits]\ncompute_share = 0.3\n")
    check_settings("[batching]\nmax_batch = 4\n")
    with pytest.raises(AssertionError, match="no such setting"):
        check_settings("[limits]\ncompute_shares = 0.3\n")


def test_a_line_that_starts_a_server_is_run_by_itself() -> None:
    assert list(parts("cd .\nedgemux cloud --bundle b\n# then\necho 1 \\\n  2\n")) == [
        "cd .",
        "edgemux cloud --bundle b",
        "# then\necho 1 \\\n  2",
    ]


# --- what the pages say of the rest


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", page("README.md")))
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} <= linked


def test_the_runbook_of_every_alert_is_a_place_in_the_troubleshooting() -> None:
    there = anchors(page("troubleshooting.md"))
    rules = "".join(path.read_text() for path in (ROOT / "deploy").rglob("*.yml"))
    wanted = set(re.findall(r"docs/troubleshooting\.md#(\w+)", rules))
    assert wanted <= there
    # And nothing is explained that no rule warns of, once there are rules.
    assert not wanted or {name for name in there if name.startswith("edgemux")} == wanted


def test_metrics_and_reasons_in_the_pages_exist() -> None:
    known = set(re.findall(r"\bedgemux_[a-z0-9_]+\b", page("metrics.md")))
    replies = {f"edgemux_{name}" for name in PARAMETERS}
    for name in ("troubleshooting.md", "budgets.md", "send-requests.md"):
        said = set(re.findall(r"\bedgemux_[a-z0-9_]+\b", page(name)))
        assert said <= known | replies, name
    described = set(re.findall(r"`(\w+)`", page("send-requests.md")))
    shed = {Reason.EXPIRED, Reason.OVERLOADED, Reason.NO_ROUTE}
    assert {reason.value for reason in Reason if reason not in shed} <= described


def test_events_in_the_troubleshooting_are_events() -> None:
    told = re.findall(r"\bevents? ((?:`\w+`(?:, | and )?)+)", page("troubleshooting.md"))
    names = {name for words in told for name in re.findall(r"`(\w+)`", words)}
    assert len(names) > 10
    assert names <= {event.name for event in (*WIRE_EVENTS, *EDGE_EVENTS, *CLOUD_EVENTS)}


WRONG_STARTS: tuple[tuple[str, str], ...] = (
    ("[limits]\ncompute_shares = 1\n", "no such setting"),
    ("[[[", "not a TOML file"),
    ('[listen]\nhost = "0.0.0.0"\n', "can be reached by others: give"),
    ('policy = "wishful"\n', "in edgemux.policies; installed: "),
    ('sensors = ["wishful"]\n', "edgemux.sensors: no plug-in "),
    ('[listen]\ntoken_file = "empty"\n', "listen.token_file: holds no token"),
    ('[listen]\ntoken_file = "short"\n', "token 1 must be 16 or more of"),
    ('[listen.tls]\ncert = "nowhere"\nkey = "nowhere"\n', "cannot be read"),
    ('[listen.tls]\ncert = "short"\nkey = "short"\n', "not whole PEM files"),
    (
        '[cloud]\naddress = "cloud.example:1"\ntoken_file = "short"\n',
        "a token is sent only over TLS, or to this machine",
    ),
    ('bundle = "nowhere"\n', "no such bundle directory"),
    ('bundle = "bare"\n', "manifest.json: missing"),
    ('bundle = "flipped"\n', "its sha256 is not the one in manifest.json"),
    ('bundle = "sealed"\n', "its content does not match its digest"),
)


@pytest.mark.parametrize(("settings", "said"), WRONG_STARTS)
def test_what_an_agent_says_that_does_not_start_is_explained(
    settings: str, said: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("# none\n")
    (tmp_path / "short").write_text("abc\n")
    (tmp_path / "bare").mkdir()
    for name, file in (("flipped", "level-1.onnx"), ("sealed", "manifest.json")):
        shutil.copytree(tiny_bundle, tmp_path / name)
        content = bytearray((tmp_path / name / file).read_bytes())
        at = content.index(b'"version"') + 12 if file == "manifest.json" else len(content) // 2
        content[at] = content[at] ^ 1
        (tmp_path / name / file).write_bytes(content)
    bundle = "" if settings.startswith("bundle") else f'bundle = "{tiny_bundle}"\n'
    top, table, rest = settings.partition("[")
    ports = "" if "[listen" in settings else "[listen]\ngrpc_port = 0\nhttp_port = 0\nmetrics_port = 0\n"
    Path("edge.toml").write_text(f"{bundle}{top}{table}{rest}\n{ports}")
    with pytest.raises((ConfigError, ArtifactError)) as caught:
        serve(load(Path("edge.toml"), {}))
    assert said in str(caught.value)
    assert said.strip() in page("troubleshooting.md")
