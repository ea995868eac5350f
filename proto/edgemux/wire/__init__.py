"""What crosses the network: messages, codec, service, status codes and channel options."""

from edgemux.wire.client import Client, Reply

__all__ = ["Client", "Reply"]
