"""What `edgemux bundle inspect` says of a bundle."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import msgspec
from rich.console import Console

from edgemux.cli.bundles import describe, print_description
from edgemux.multiplexer.bundle import Bundle, File, Payload, Split, Tensor, seal


def printed(folder: Path) -> str:
    text = io.StringIO()
    print_description(describe(Bundle.open(folder)), Console(file=text, width=160))
    return text.getvalue()


def test_payloads_and_splits_are_shown_where_there_are_any(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    assert "splits" not in printed(folder)
    assert "can be sent as" not in printed(folder)
    for name in ("h.onnx", "t.onnx"):
        (folder / name).write_bytes(b"123456789" * 1000)
    plain = Bundle.open(folder).manifest
    raw = Payload("raw", 784.0, 0.9, (0.8, 0.95), 0.0, 0.0, 0.0, 500)
    sent = Tensor("cut", "UINT8", (-1, 4))
    split = Split("deep-cut", "h.onnx", 2, "t.onnx", sent, 4, 91.0, 0.125, 0.375, 10**6, 500, 0.9, 0.0123)
    files = (*plain.files, File("h.onnx", 0, ""), File("t.onnx", 0, ""))
    seal(folder, msgspec.structs.replace(plain, files=files, payloads=(raw,), splits=(split,)))
    about = describe(Bundle.open(folder))
    assert [each["encoding"] for each in about["payloads"]] == ["raw"]
    (described,) = about["splits"]
    assert described["model"] == f"{plain.name}.deep-cut"
    assert (described["head_bytes"], described["bits"], described["sent"]["shape"]) == (9000, 4, (-1, 4))
    text = printed(folder)
    for told in ("can be sent as", "784", "deep-cut", "9,000", "1.0", "1.23 %", "0.125", "0.375"):
        assert told in text
