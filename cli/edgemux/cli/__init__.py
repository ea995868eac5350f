"""The one command: knows every part, imports each on use."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # why: edgemux.wire
