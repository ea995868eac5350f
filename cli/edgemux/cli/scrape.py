"""Counters of a running server, read from its metrics port."""

from __future__ import annotations

import http.client

# The agent's counter of inputs sent to the cloud: a cancelled or failed offload has cost the cloud's time as well.
OFFLOAD_ATTEMPTS = "edgemux_offload_attempts_total"
TIMEOUT_S = 2.0


def read_counter(address: str, name: str) -> int | None:
    """The counter's sum over its labels at HOST:PORT, None when it cannot be read or does not exist."""
    # http.client and not urllib: a proxy configured for the machine must not come between two local processes.
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return counter_in(text, name)


def counter_in(text: str, name: str) -> int | None:
    """The sum of a counter's samples in a text exposition, None when there is none."""
    samples = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    # After the labels come the value and, optionally, a time stamp.
    values = [line.rpartition("}")[2].removeprefix(name).split()[0] for line in samples]
    return round(sum(float(value) for value in values)) if values else None
