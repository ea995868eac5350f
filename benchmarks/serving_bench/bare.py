"""The least that a gRPC server in Python can be: grpc.aio on uvloop, the model run where the request is handled.

    python benchmarks/serving_bench/bare.py ONNX

Messages are edgemux's, in form the same as everybody's; nothing is checked and nothing is put together.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import grpc
import grpc.aio
import numpy as np
import onnxruntime
import uvloop

from edgemux.wire import oip_pb2 as oip

KINDS = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


async def serve(path: str) -> None:
    """On a free port of loopback, which it prints, until SIGTERM."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (tensor,), (output,) = session.get_inputs(), session.get_outputs()
    kind = KINDS[tensor.type]

    async def infer(request: Any, context: Any) -> Any:
        rows = np.frombuffer(request.raw_input_contents[0], kind).reshape(tuple(request.inputs[0].shape))
        (answer,) = session.run([output.name], {tensor.name: rows})
        response = oip.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        response.outputs.add(name=output.name, datatype="FP32", shape=answer.shape)
        response.raw_output_contents.append(answer.tobytes())
        return response

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    method = grpc.unary_unary_rpc_method_handler(
        infer, oip.ModelInferRequest.FromString, oip.ModelInferResponse.SerializeToString
    )
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"bare ready grpc=127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvloop.run(serve(sys.argv[1]))
