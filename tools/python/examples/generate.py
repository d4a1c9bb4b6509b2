"""Streams a continuation from an Isotherm gateway: python generate.py [--address HOST:PORT] "The king said"

Needs grpcio, and to generate the stubs from the repository's proto/ at start either grpcio-tools or the distribution's
protobuf-compiler and protobuf-compiler-grpc.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc

PROTO = Path(__file__).resolve().parents[3] / "proto"
try:
    from grpc_tools import protoc
    bundled = Path(protoc.__file__).parent / "_proto"  # distributions put google/protobuf/*.proto under /usr/include
    COMPILER = [sys.executable, "-m", "grpc_tools.protoc", f"-I{bundled if bundled.is_dir() else '/usr/include'}"]
except ImportError:
    COMPILER = ["protoc", f"--plugin=protoc-gen-grpc_python={shutil.which('grpc_python_plugin')}"]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("--address", default="127.0.0.1:7070")
parser.add_argument("--max-tokens", type=int, default=100)
parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
options = parser.parse_args()

with tempfile.TemporaryDirectory() as stubs:
    subprocess.run([*COMPILER, f"-I{PROTO}", f"--python_out={stubs}", f"--grpc_python_out={stubs}",
                    str(PROTO / "isotherm/v1/inference.proto")], check=True)
    sys.path.insert(0, stubs)
    from isotherm.v1 import inference_pb2 as pb
    from isotherm.v1 import inference_pb2_grpc as rpc

request = pb.GenerateRequest(text=options.prompt, sampling=pb.SamplingParameters(temperature=options.temperature),
                             stopping=pb.StoppingParameters(max_tokens=options.max_tokens))
with grpc.insecure_channel(options.address) as channel:
    try:
        for response in rpc.InferenceServiceStub(channel).Generate(request):
            if response.HasField("chunk"):
                print(response.chunk.text, end="", flush=True)
            elif response.HasField("complete"):
                print(f"\n[{pb.FinishReason.Name(response.complete.finish_reason)}, "
                      f"{response.complete.usage.completion_tokens} tokens]", file=sys.stderr)
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
