"""Writes the dashboards: python -m deploy.grafana.generate [--check], from the repository's root.

They are committed, and a test holds them against what this makes: change the code, run it, commit both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import cloud, fleet, one_edge_device
from deploy.grafana.layout import built

FOLDER = Path(__file__).parent / "dashboards"
PAGES = {"edge-fleet": fleet.PAGE, "one-edge": one_edge_device.PAGE, "cloud": cloud.PAGE}


def dashboards() -> Iterator[tuple[str, str]]:
    """The name of each file, and its text."""
    for name, page in PAGES.items():
        made = _tidy(json.loads(JSONEncoder().encode(built(page))))
        # It is for whoever looks to choose.
        del made["style"]
        yield f"{name}.json", json.dumps(made, indent=1) + "\n"


def _tidy(value: Any) -> Any:
    """Without what is null: a threshold's first step alone needs it."""
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in value.items() if item is not None or key == "value"}
    return [_tidy(item) for item in value] if isinstance(value, list) else value


def main(arguments: list[str]) -> int:
    """Write the files, or only compare: 1 where one of them is not what the code makes."""
    stale = []
    for name, text in dashboards():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in arguments:
                path.write_text(text)
                print(f"wrote {name}")
    if stale and "--check" in arguments:
        print(f"not what the code makes: {', '.join(stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
