"""The floor of Python's gRPC: grpc.aio on uvloop, a servicer that runs the model inline, and nothing else.

bare.py ONNX PORT: no validation, no batching, no deadline, no metrics.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import numpy as np
import onnxruntime

from edgemux.wire import oip_pb2 as oip

DTYPES = {"UINT8": np.uint8, "FP32": np.float32}


class Bare:
    """One model, loaded once."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.outputs = [each.name for each in self.session.get_outputs()]

    async def infer(self, request: Any, context: Any) -> Any:
        """ModelInfer."""
        inputs = {
            each.name: np.frombuffer(raw, DTYPES[each.datatype]).reshape(each.shape)
            for each, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        response = oip.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        for name, array in zip(self.outputs, self.session.run(self.outputs, inputs), strict=True):
            response.outputs.add(name=name, datatype="FP32", shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response


async def main(path: str, port: int) -> None:
    """Until it is killed."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        Bare(path).infer,
        request_deserializer=oip.ModelInferRequest.FromString,
        response_serializer=oip.ModelInferResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(sys.argv[1], int(sys.argv[2])))
    else:
        uvloop.run(main(sys.argv[1], int(sys.argv[2])))
