"""Messages and stubs of every service, generated from the repository's .proto files when this module is imported."""

import pathlib
import shutil
import subprocess
import sys
import tempfile

import suite

_SOURCES = (
    "proto/isotherm/v1/inference.proto", "proto/isotherm/v1/model.proto",
    "proto/isotherm/worker/v1/predictor.proto", "common/rpc/error_details.proto")


def _generate():
    plugin = shutil.which("grpc_python_plugin")
    if plugin is None or shutil.which("protoc") is None:
        raise RuntimeError("protoc and grpc_python_plugin are needed (protobuf-compiler, protobuf-compiler-grpc)")
    with tempfile.TemporaryDirectory(prefix="isotherm-stubs-") as out:
        subprocess.run(
            ["protoc", f"-I{suite.SOURCE / 'proto'}", f"-I{suite.SOURCE / 'common/rpc'}", f"--python_out={out}",
             f"--grpc_out={out}", f"--plugin=protoc-gen-grpc={plugin}",
             *(str(suite.SOURCE / source) for source in _SOURCES)], check=True)
        sys.path.insert(0, out)
        try:
            from isotherm.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc
            from isotherm.worker.v1 import predictor_pb2, predictor_pb2_grpc
            import error_details_pb2
        finally:
            sys.path.remove(out)
        return (inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc, predictor_pb2, predictor_pb2_grpc,
                error_details_pb2)


(inference, inference_grpc, model, model_grpc, predictor, predictor_grpc, error_details) = _generate()
