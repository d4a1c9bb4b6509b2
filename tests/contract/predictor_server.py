"""A predictor in a process of its own: the model's gate matrices in numpy.

    predictor_server.py MODEL.gguf ADDRESS
"""

import concurrent.futures
import itertools
import pathlib
import sys

import grpc
import numpy

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import gguf_tensors
import stubs


class GatePredictor(stubs.predictor_grpc.PredictorServiceServicer):
    def __init__(self, model):
        tensors = gguf_tensors.GgufTensors(model)
        names = map("blk.{}.ffn_gate.weight".format, itertools.count())
        self._gates = [tensors.matrix(name) for name in itertools.takewhile(tensors.__contains__, names)]

    def GetPredictor(self, request, context):
        return stubs.predictor.GetPredictorResponse(name="numpy", exact=True, reads_residual=False)

    def Predict(self, requests, context):
        for request in requests:
            inputs = numpy.frombuffer(request.input, dtype="<f4").reshape(request.rows, -1)
            fires = inputs @ self._gates[request.layer].T > 0
            bits = numpy.pad(fires, [(0, 0), (0, -fires.shape[1] % 64)])
            yield stubs.predictor.PredictResponse(masks=numpy.packbits(bits, axis=1, bitorder="little").tobytes())


def main():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor())
    stubs.predictor_grpc.add_PredictorServiceServicer_to_server(GatePredictor(sys.argv[1]), server)
    server.add_insecure_port(sys.argv[2])
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
