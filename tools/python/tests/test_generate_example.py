"""The example client against a fake gateway; skipped where grpcio or grpcio-tools is missing."""

from __future__ import annotations

import subprocess
import sys
from concurrent import futures
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc")
protoc = pytest.importorskip("grpc_tools.protoc")

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture()
def gateway(tmp_path: Path):  # type: ignore[no-untyped-def]
    """(address, requests received) of a server that answers "ok" and refuses the prompt "full"."""
    bundled = Path(protoc.__file__).parent / "_proto"
    include = bundled if bundled.is_dir() else Path("/usr/include")
    assert protoc.main(["protoc", f"-I{PROJECT / 'proto'}", f"-I{include}", f"--python_out={tmp_path}",
                        f"--grpc_python_out={tmp_path}", str(PROJECT / "proto/isotherm/v1/inference.proto")]) == 0
    sys.path.insert(0, str(tmp_path))
    try:
        from isotherm.v1 import inference_pb2 as pb  # type: ignore[import-not-found]
        from isotherm.v1 import inference_pb2_grpc as rpc  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    received = []

    class Fake(rpc.InferenceServiceServicer):
        def Generate(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
            received.append(request)
            if request.text == "full":
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
            yield pb.GenerateResponse(progress=pb.GenerateProgress(phase=pb.GENERATE_PHASE_DECODE))
            yield pb.GenerateResponse(chunk=pb.GenerateChunk(text="o"))
            yield pb.GenerateResponse(chunk=pb.GenerateChunk(text="k \u00e9"))
            yield pb.GenerateResponse(complete=pb.GenerateComplete(
                finish_reason=pb.FINISH_REASON_MAX_TOKENS, usage=pb.Usage(completion_tokens=2)))

    server = grpc.server(futures.ThreadPoolExecutor(2))
    rpc.add_InferenceServiceServicer_to_server(Fake(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}", received
    server.stop(None)


def run(address: str, prompt: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROJECT / "tools/python/examples/generate.py"), "--address", address,
                           "--max-tokens", "7", prompt], capture_output=True, encoding="utf-8", timeout=60,
                          env={"PYTHONIOENCODING": "utf-8", "PATH": ""}, check=False)


def test_prints_the_stream(gateway) -> None:  # type: ignore[no-untyped-def]
    address, received = gateway
    result = run(address, "Once upon a time")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ok \u00e9"
    assert "FINISH_REASON_MAX_TOKENS, 2 tokens" in result.stderr
    assert received[0].text == "Once upon a time" and received[0].stopping.max_tokens == 7
    assert received[0].sampling.HasField("temperature") and received[0].sampling.temperature == 0


def test_an_error_status_is_the_last_line(gateway) -> None:  # type: ignore[no-untyped-def]
    result = run(gateway[0], "full")
    assert result.returncode == 1
    assert result.stderr.strip().endswith("RESOURCE_EXHAUSTED: the queue is full")
