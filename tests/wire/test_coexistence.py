"""Our messages share a process with other implementations', and the bytes are the same.

tritonclient's gRPC messages and MLServer's refuse each other in any program, because both register the package
``inference`` (triton-inference-server/client issue 730). So three combinations are shown, in MLServer's environment
(``benchmarks/serving_bench/peers.py make mlserver``): tritonclient over HTTP, MLServer and edgemux, in any order;
MLServer's gRPC messages and ours; and all three over gRPC, with MLServer's messages in a pool of their own.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
{imports}
theirs = service_pb2.ModelInferRequest(model_name="m", id="7")
theirs.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
theirs.parameters["priority"].int64_param = 3
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


# --- with MLServer too ----------------------------------------------------------------------------------------------
ROOT = Path(__file__).parents[2]
HOME = Path(os.environ.get("EDGEMUX_PEERS") or Path.home() / ".cache" / "edgemux" / "peers") / "mlserver"
EDGEMUX = "from edgemux.wire import Client, oip_pb2"
TRITON_HTTP = "import tritonclient.http"
MLSERVER = "import mlserver, mlserver.grpc.dataplane_pb2 as service_pb2"
# Before MLServer is imported: its messages into a pool of their own.
PRIVATE = """
import google.protobuf.descriptor_pool as pools
default, private = pools.Default, pools.DescriptorPool()
pools.Default = lambda: private
try:
    import mlserver.grpc.dataplane_pb2 as dataplane_pb2
finally:
    pools.Default = default
import mlserver, mlserver.grpc.server
"""
mlserver_environment = pytest.mark.skipif(
    not (HOME / "requirements.txt").is_file(),
    reason="MLServer has no environment here; benchmarks/serving_bench/peers.py make mlserver",
)


def there(program: str) -> str:
    """What a program says in MLServer's environment with our roots on its path, or its last line of complaint."""
    roots = os.pathsep.join(str(ROOT / part) for part in ("proto", "multiplexer"))
    done = subprocess.run(
        [HOME / "bin" / "python", "-W", "ignore", "-c", program],
        env=os.environ | {"PYTHONPATH": roots},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return (done.stdout or done.stderr).strip().splitlines()[-1]


@mlserver_environment
def test_tritonclient_over_http_mlserver_and_edgemux_load_in_any_order() -> None:
    for order in itertools.permutations((EDGEMUX, TRITON_HTTP, MLSERVER)):
        assert there(PROGRAM.format(imports="\n".join(order))) == "same"


@mlserver_environment
def test_all_three_load_over_grpc_when_mlserver_s_messages_have_a_pool_of_their_own() -> None:
    for ours_first in (True, False):
        parts = [EDGEMUX, PRIVATE] if ours_first else [PRIVATE, EDGEMUX]
        program = PROGRAM.format(imports="\n".join([THEIRS, *parts]))
        program += "assert dataplane_pb2.ModelInferRequest.FromString(ours.SerializeToString()).id == '7'\nprint('all')"
        assert there(program) == "all"


@mlserver_environment
def test_what_loads_without_edgemux_loads_with_it_and_nothing_else() -> None:
    """Also where tritonclient's gRPC messages and MLServer's refuse each other: that is none of ours."""
    for order in ((THEIRS, MLSERVER), (MLSERVER, THEIRS)):
        alone = there("\n".join([*order, "print('loaded')"]))
        beside = there("\n".join([EDGEMUX, *order, "print('loaded')"]))
        assert alone == beside
