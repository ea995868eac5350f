"""The blocks of the documentation are run, as a reader would run them, or say why they cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.page_blocks import ROOT, RUN, Reader, blocks, check_settings, parts

DOCS = ROOT / "docs"
# Pages whose blocks are run, or checked, by tests of their own, and which.
ELSEWHERE = {
    "security.md": "tests/house/test_security_page.py",
    "bring-your-own.md": "tests/system/test_own_models.py",
}
PAGES = sorted(path.name for path in DOCS.glob("*.md") if path.name not in ELSEWHERE)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in PAGES if any(block.runs for block in blocks(page(name)))])
def test_every_block_of_a_page_works_in_the_order_of_the_page(name: str, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
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
