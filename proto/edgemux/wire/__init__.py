"""What crosses the network: messages, codec, service, status codes and channel options."""

import os

# gRPC's library writes lines of its own to stderr, about what reaches us as statuses and exceptions anyway. It looks at
# this once, when it is imported: so each package of ours that may be the first to import it says the same.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from edgemux.wire.client import Client, Reply

__all__ = ["Client", "Reply"]
