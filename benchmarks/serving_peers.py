"""Other servers around the same model: each as its documentation shows, raw float32 in, raw float32 out.

LitServe reads JSON or forms: it gets the tensor as a form's file. Every program takes PORT MODEL.onnx and
serves with one engine thread; batches form up to 8 rows where the server can batch. They run in environments
of their own, `PEERS/NAME/bin/python`, for their pins clash.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["PACKAGES", "PROGRAMS"]

PACKAGES: Mapping[str, str] = {
    "kserve": "kserve",
    "litserve": "litserve python-multipart",
    "ray": "ray[serve]",
}

_ENGINE = """
import sys, numpy as np, onnxruntime
def open_model(path=sys.argv[2]):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
"""

_KSERVE = """
import kserve
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
class Served(Model):
    def __init__(self):
        super().__init__("model")
        self.session, self.ready = open_model(), True
    def predict(self, payload: InferRequest, headers=None, response_headers=None):
        (logits,) = self.session.run(None, {"image": payload.inputs[0].as_numpy()})
        output = InferOutput("logits", list(logits.shape), "FP32")
        output.set_data_from_numpy(logits, binary_data=True)
        return InferResponse(payload.id or "0", "model", [output])
ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1).start([Served()])
"""

_LITSERVE = """
import litserve
from fastapi import Request, Response
class Served(litserve.LitAPI):
    def setup(self, device):
        self.session = open_model()
    def decode_request(self, request: Request):
        return np.frombuffer(request["file"].file.read(), np.float32).reshape(1, 3, 224, 224)
    def batch(self, inputs):
        return np.concatenate(inputs)
    def unbatch(self, output):
        return list(output)
    def predict(self, x):
        return self.session.run(None, {"image": x})[0]
    def encode_response(self, output):
        return Response(np.asarray(output).tobytes())
if __name__ == "__main__":
    api = Served(max_batch_size=8, batch_timeout=0.001)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error")
"""

_RAY = """
import time, ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
MODEL = sys.argv[2]
@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
class Served:
    def __init__(self):
        self.session = open_model(MODEL)
    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0)
    async def infer(self, rows):
        return list(self.session.run(None, {"image": np.concatenate(rows)})[0])
    async def __call__(self, request: Request):
        row = np.frombuffer(await request.body(), np.float32).reshape(1, 3, 224, 224)
        return Response((await self.infer(row)).tobytes())
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Served.bind())
while True:
    time.sleep(1)
"""

PROGRAMS: Mapping[str, str] = {
    "kserve": _ENGINE + _KSERVE,
    "litserve": _ENGINE + _LITSERVE,
    "ray": _ENGINE + _RAY,
}
