"""Our messages share a process with another implementation's, and the bytes are the same."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
{imports}
theirs = service_pb2.ModelInferRequest(model_name="m", id="7")
theirs.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
theirs.parameters["priority"].uint64_param = 3
theirs.raw_input_contents.append(bytes(784))
ours = oip_pb2.ModelInferRequest.FromString(theirs.SerializeToString(deterministic=True))
assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
answer = oip_pb2.ModelInferResponse(model_name="m")
answer.outputs.add(name="label", datatype="INT64", shape=[1])
assert service_pb2.ModelInferResponse.FromString(answer.SerializeToString()).outputs[0].name == "label"
print("same")
"""
OURS = "from edgemux.wire import oip_pb2"
THEIRS = "import tritonclient.grpc\nfrom tritonclient.grpc import service_pb2"


def test_tritonclient_and_edgemux_load_in_either_order_and_agree_on_every_byte() -> None:
    for imports in (f"{OURS}\n{THEIRS}", f"{THEIRS}\n{OURS}"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(imports=imports)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.stdout.strip() == "same", done.stderr[-500:]
