"""The messages of the Open Inference Protocol over gRPC, from a compiled description that any protobuf runtime reads.

`python -m service.api.grpc_messages` compiles `open_inference.proto` again, after a change, with grpcio-tools.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SOURCE = Path(__file__).with_name("open_inference.proto")
COMPILED = SOURCE.with_suffix(".binpb")
PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"


def load_messages() -> dict[str, Any]:
    """Message classes by their names in a pool of their own: another copy of the protocol may be in the process."""
    files = descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    names = [message.name for file in files.file for message in file.message_type]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in names}


def compile_source(target: Path = COMPILED) -> None:
    """Write the description of `open_inference.proto`."""
    from grpc_tools import protoc

    arguments = [f"--proto_path={SOURCE.parent}", f"--descriptor_set_out={target}", SOURCE.name]
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit(1)


if __name__ == "__main__":
    compile_source()
