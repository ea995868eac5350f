"""What was measured on, in words. Needs nothing but Python, so that an edge-only environment can say it too."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def hardware() -> str:
    """CPU model, cores and what matters of its instructions; nothing that names the machine."""
    model, flags = platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware"):
                model = value.strip()
            if key.strip() in ("flags", "Features"):
                flags = set(value.split())
    except OSError:
        pass
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "asimd") if flag in flags]
    return f"{model}, {os.cpu_count()} cores, {' '.join(known) or 'no known vector instructions'}"
