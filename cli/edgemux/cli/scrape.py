"""What a running server's metrics port says."""

from __future__ import annotations

import http.client

# Inputs sent to the cloud by the agent: a cancelled or failed offload has cost the cloud's time as well.
OFFLOAD_ATTEMPTS = "edgemux_offload_attempts_total"
# The agent shows it only once it has measured its link.
LINK_MEASURED = 'edgemux_resource{sensor="link_rtt_seconds"}'
TIMEOUT_S = 2.0


def scrape(address: str) -> str:
    """The text exposition at HOST:PORT, empty when it cannot be read."""
    # http.client and not urllib: a proxy configured for the machine must not come between two local processes.
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def counter_in(text: str, name: str) -> int | None:
    """The sum of a counter's samples in a text exposition, None when there is none."""
    samples = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    # After the labels come the value and, optionally, a time stamp.
    values = [line.rpartition("}")[2].removeprefix(name).split()[0] for line in samples]
    return round(sum(float(value) for value in values)) if values else None
