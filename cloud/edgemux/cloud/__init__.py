"""The cloud server: a bundle's full model behind the Open Inference Protocol."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # why: edgemux.wire
