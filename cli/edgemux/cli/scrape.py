"""What a running server's metrics port says."""

from __future__ import annotations

import http.client

import msgspec

# Inputs sent to the cloud by the agent: a cancelled or failed offload has cost the cloud's time as well.
OFFLOAD_ATTEMPTS = "edgemux_offload_attempts_total"
OFFLOAD_BYTES = "edgemux_offload_bytes_total"
# By form; what a split sends are packed bits.
OFFLOAD_PAYLOADS = "edgemux_offload_payloads_total"
PARTS = 'payload="bits'
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


def counter_in(text: str, name: str, having: str = "") -> int | None:
    """The sum of a counter's samples in a text exposition, None when there is none. having: of their labels."""
    lines = (line for line in text.splitlines() if having in line)
    samples = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
    # After the labels come the value and, optionally, a time stamp.
    values = [line.rpartition("}")[2].removeprefix(name).split()[0] for line in samples]
    return round(sum(float(value) for value in values)) if values else None


class Sent(msgspec.Struct, frozen=True):
    """What has left a device for the cloud: inputs, those of them of which a split sent a part, and bytes of all."""

    inputs: int
    parts: int
    bytes: int

    def since(self, before: Sent) -> Sent:
        """What came after ``before``."""
        return Sent(self.inputs - before.inputs, self.parts - before.parts, self.bytes - before.bytes)


def sent_in(text: str) -> Sent | None:
    """From an agent's text exposition, None where it does not say."""
    inputs, size = counter_in(text, OFFLOAD_ATTEMPTS), counter_in(text, OFFLOAD_BYTES)
    if inputs is None or size is None:
        return None
    return Sent(inputs, counter_in(text, OFFLOAD_PAYLOADS, PARTS) or 0, size)
