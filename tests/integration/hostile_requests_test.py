"""Absurd requests: an error that names the field, and a server that goes on serving."""

import unittest

import grpc

import client
import cluster
import stubs
import suite

pb = stubs.inference
NAN, INFINITY = float("nan"), float("inf")
CONTEXT = 128
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def with_sampling(**fields):
    return pb.GenerateRequest(text="Once", sampling=pb.SamplingParameters(**fields),
                              stopping=pb.StoppingParameters(max_tokens=1))


def with_stopping(**fields):
    return pb.GenerateRequest(text="Once", stopping=pb.StoppingParameters(**fields))


# field named by the error: requests
BAD_GENERATE = {
    "sampling.temperature": [with_sampling(temperature=value) for value in (NAN, INFINITY, -INFINITY, -1)],
    "sampling.top_p": [with_sampling(top_p=value) for value in (0, 2, -0.5, NAN, INFINITY)],
    "sampling.min_p": [with_sampling(min_p=value) for value in (1.5, 1, -0.1, NAN)],
    "sampling.repetition_penalty": [with_sampling(repetition_penalty=value) for value in (0, -1, NAN, INFINITY)],
    "sampling.frequency_penalty": [with_sampling(frequency_penalty=value) for value in (NAN, INFINITY)],
    "sampling.presence_penalty": [with_sampling(presence_penalty=value) for value in (NAN, -INFINITY)],
    "sampling.logit_bias[4096]": [with_sampling(logit_bias={4096: 1})],
    "sampling.logit_bias[4294967295]": [with_sampling(logit_bias={2**32 - 1: 1})],
    "sampling.logit_bias[7]": [with_sampling(logit_bias={7: value}) for value in (NAN, INFINITY)],
    "stopping.max_tokens": [with_stopping(max_tokens=0)],
    "stopping.stop": [with_stopping(stop=["x"] * 10_000)],
    "stopping.stop[1]": [with_stopping(stop=["fine", "x" * (1 << 20)]), with_stopping(stop=["fine", ""])],
    "prompt": [pb.GenerateRequest(), pb.GenerateRequest(tokens=pb.TokenIds()),
               pb.GenerateRequest(text="", add_bos=False), client.greedy([1] * CONTEXT, 1),
               client.greedy("word " * CONTEXT, 1)],
    "tokens.ids[2]": [client.greedy([1, 2, value], 1) for value in (4096, 2**32 - 1)],
    "text": [client.greedy("x" * (1 << 20), 1)],
}
BAD_SCORE = {
    "input": [pb.ScoreRequest(), pb.ScoreRequest(tokens=pb.TokenIds()),
              pb.ScoreRequest(tokens=pb.TokenIds(ids=[1] * (CONTEXT + 1)))],
    "tokens.ids[0]": [pb.ScoreRequest(tokens=pb.TokenIds(ids=[4096]))],
    "text": [pb.ScoreRequest(text="x" * (1 << 20))],
}
# Extreme, but good.
GOOD_GENERATE = [
    with_stopping(max_tokens=2**32 - 1),
    with_sampling(temperature=3e38), with_sampling(temperature=1e-40), with_sampling(top_k=2**32 - 1),
    with_sampling(top_p=1e-30), with_sampling(top_k=0, top_p=1, min_p=0),
    with_sampling(repetition_penalty=3e38), with_sampling(repetition_penalty=1e-38),
    with_sampling(repetition_window=2**32 - 1, frequency_penalty=3e38), with_sampling(repetition_window=0),
    with_sampling(seed=2**64 - 1), with_sampling(logit_bias={i: -3e38 for i in range(4096)}),
    client.greedy([1] * (CONTEXT - 1), 5), client.greedy("\0\u202e\ufffd\U0001f409\n" * 3, 5),
]


def violated_field(error):
    """The field that google.rpc.BadRequest in the trailing metadata names."""
    for key, value in error.trailing_metadata():
        if key != "grpc-status-details-bin":
            continue
        for detail in stubs.error_details.Status.FromString(value).details:
            if detail.type_url.endswith("google.rpc.BadRequest"):
                return stubs.error_details.BadRequest.FromString(detail.value).field_violations[0].field
    return None


class HostileRequestsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.running = cls.enterClassContext(cluster.Cluster(
            gpu_worker=[*cluster.COLD, f"--ctx={CONTEXT}", "--kv-tokens=256", "--max-decode-rows=1"]))

    def tearDown(self):
        stream = client.generate(self.running, client.greedy("Once upon a time", 3))
        self.assertEqual(3, len(stream.tokens))

    def check_refused(self, field, call):
        with self.assertRaises(grpc.RpcError) as refused:
            call()
        error = refused.exception
        self.assertEqual(INVALID, error.code(), error.details())
        self.assertIn(field, error.details())
        self.assertLess(len(error.details()), 1024)
        named = violated_field(error)
        self.assertIn(named, (None, field))
        return named

    def test_absurd_fields_of_generate_are_named(self):
        for field, requests in BAD_GENERATE.items():
            for request in requests:
                with self.subTest(field=field, request=str(request)[:100]):
                    self.check_refused(field, lambda: client.generate(self.running, request))

    def test_absurd_fields_of_score_are_named(self):
        for field, requests in BAD_SCORE.items():
            for request in requests:
                with self.subTest(field=field, request=str(request)[:100]):
                    self.check_refused(field, lambda: self.running.inference.Score(request, timeout=suite.PATIENCE))

    def test_what_cannot_be_parsed_is_refused_with_the_reason(self):
        # As bytes: Python would make no such message.
        requests = {"Generate": (b"\x12\x03a\xffb", "text"), "Score": (b"\x12\x02\xc0\x80", "text"),
                    "Tokenize": (b"\xff\xff\xff", "Tokenize")}
        with grpc.insecure_channel(self.running.address("gateway")) as channel:
            for method, (message, named) in requests.items():
                call = channel.unary_stream if method == "Generate" else channel.unary_unary
                call = call(f"/isotherm.v1.InferenceService/{method}")
                with self.subTest(method=method):
                    self.check_refused(named, lambda: list(call(message, timeout=suite.PATIENCE)))

    def test_the_error_details_name_the_field_too(self):
        named = self.check_refused("sampling.top_p", lambda: client.generate(self.running, with_sampling(top_p=2)))
        self.assertEqual("sampling.top_p", named)

    def test_an_unknown_token_cannot_be_detokenized(self):
        request = pb.DetokenizeRequest(tokens=[5, 4096])
        self.check_refused("tokens[1]", lambda: self.running.inference.Detokenize(request, timeout=suite.PATIENCE))

    def test_a_deadline_that_passed_before_the_call_is_an_error(self):
        for timeout in (-1, 0, 1e-6):
            with self.subTest(timeout=timeout), self.assertRaises(grpc.RpcError) as ended:
                client.generate(self.running, client.greedy("Once", 100), timeout=timeout)
            self.assertEqual(grpc.StatusCode.DEADLINE_EXCEEDED, ended.exception.code())

    def test_an_unknown_model_is_not_found(self):
        calls = (lambda: client.generate(self.running, pb.GenerateRequest(model="other", text="x")),
                 lambda: self.running.inference.Score(pb.ScoreRequest(model="other", text="x")),
                 lambda: self.running.inference.Tokenize(pb.TokenizeRequest(model="other", text="x")),
                 lambda: self.running.models.GetModel(stubs.model.GetModelRequest(name="other")))
        for call in calls:
            with self.assertRaises(grpc.RpcError) as refused:
                call()
            self.assertEqual(grpc.StatusCode.NOT_FOUND, refused.exception.code())
            self.assertIn("other", refused.exception.details())

    def test_extreme_but_good_requests_are_served(self):
        for request in GOOD_GENERATE:
            with self.subTest(request=str(request)[:100]):
                complete = client.generate(self.running, request).complete
                self.assertNotEqual(pb.FINISH_REASON_UNSPECIFIED, complete.finish_reason)

    def test_text_ends_where_the_context_does(self):
        stream = client.generate(self.running, client.greedy("Once", 2**32 - 1))
        self.assertEqual(pb.FINISH_REASON_CONTEXT_FULL, stream.complete.finish_reason)
        self.assertEqual(CONTEXT, stream.complete.usage.prompt_tokens + len(stream.tokens))


if __name__ == "__main__":
    suite.main()
