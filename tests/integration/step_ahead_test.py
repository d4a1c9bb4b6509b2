"""Steps computed before the gateway asks for them change no text, whatever becomes of the sequence."""

import unittest

import client
import cluster
import suite
import tales

TOKENS = 60


def sampled(prompt, seed):
    request = client.greedy(prompt, TOKENS)
    request.sampling.temperature = 0.8
    request.sampling.seed = seed
    return request


class StepAheadTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prompts = tales.prompts(4)
        cls.requests = [client.greedy(prompt, TOKENS) for prompt in cls.prompts]
        with cluster.Cluster(gpu_worker=cluster.COLD) as running:
            cls.expected = [client.generate(running, request) for request in cls.requests]
            cls.drawn = client.generate(running, sampled(cls.prompts[0], 7))

    def setUp(self):
        self.running = self.enterContext(cluster.Cluster(gpu_worker=(*cluster.COLD, "--step-ahead=on")))

    def steps_ahead(self, outcome):
        return self.running.metrics("gpu_worker").total("isotherm_steps_ahead_total", outcome=outcome)

    def check(self, streams):
        for expected, stream in zip(self.expected, streams, strict=True):
            self.assertEqual(expected.tokens, stream.tokens)
            self.assertEqual(expected.text, stream.text)

    def test_all_but_the_first_token_of_a_sequence_alone_are_computed_ahead(self):
        self.check([client.generate(self.running, request) for request in self.requests])
        self.assertEqual(len(self.requests) * (TOKENS - 1), self.steps_ahead("asked_for"))
        self.assertEqual(0, self.steps_ahead("discarded"))
        worker = self.running.metrics("gpu_worker")
        self.assertEqual(len(self.requests) * TOKENS, worker.total("isotherm_steps_total"))

    def test_sequences_that_come_and_go_have_their_own_text(self):
        self.check(client.generate_all(self.running, self.requests, at_once=2))

    def test_what_is_drawn_is_not_computed_ahead(self):
        self.assertEqual(self.drawn.tokens, client.generate(self.running, sampled(self.prompts[0], 7)).tokens)
        self.assertEqual(0, self.steps_ahead("asked_for") + self.steps_ahead("discarded"))

    def test_the_step_ahead_of_a_cancelled_stream_is_discarded(self):
        call = self.running.inference.Generate(self.requests[0], timeout=suite.PATIENCE)
        for _ in range(5):
            next(call)
        call.cancel()
        self.check([client.generate(self.running, request) for request in self.requests])
        self.assertLessEqual(self.steps_ahead("discarded"), 1)

    def test_a_step_ahead_of_a_sequence_that_is_over_is_computed_once(self):
        # The end is a stop string's, which the worker cannot foresee.
        request = client.greedy(self.prompts[0], TOKENS)
        request.stopping.stop.append(self.expected[0].text[60:70])
        stream = client.generate(self.running, request)
        self.assertLess(len(stream.tokens), TOKENS)
        discarded = cluster.wait_until(lambda: self.steps_ahead("discarded"), "the gateway's word that it is over")
        self.assertEqual(1, discarded)
        self.check([client.generate(self.running, request) for request in self.requests])
        self.assertEqual(1, self.steps_ahead("discarded"))

    def test_a_cpu_worker_killed_under_a_step_ahead_costs_no_token(self):
        killed = []

        def kill_once(stream):
            if not killed and len(stream.tokens) >= 20:
                killed.append(True)
                self.running.cpu_worker.kill()
                self.running.cpu_worker.start()

        self.check([client.generate(self.running, request, kill_once) for request in self.requests])
        self.assertTrue(killed)


if __name__ == "__main__":
    suite.main()
