"""Generates the stubs of inference.proto beside it: python -m saccade.serving.protocol.generate

Needs grpcio-tools. The messages get a descriptor pool of their own: tritonclient brings the same names, and
one pool would refuse whichever is imported second.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PROTO = "saccade/serving/protocol/inference.proto"
_SHARED, _OWN = "_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"


def generate(folder: Path) -> list[Path]:
    """Write inference_pb2.py, .pyi and inference_pb2_grpc.py under `folder`; returns them."""
    from grpc_tools import protoc

    root = FOLDER.parents[2]
    status = protoc.main(
        [
            "protoc",
            f"-I{root}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={folder}",
            f"--pyi_out={folder}",
            f"--grpc_python_out={folder}",
            PROTO,
        ]
    )
    if status:
        raise SystemExit(status)
    made = sorted((folder / PROTO).parent.glob("inference_pb2*"))
    for path in made:
        path.write_text(path.read_text(encoding="utf-8").replace(_SHARED, _OWN), encoding="utf-8")
    return made


if __name__ == "__main__":
    for each in generate(FOLDER.parents[2]):
        print(each, file=sys.stderr)
