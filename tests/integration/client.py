"""Requests as these tests make them, and what comes back."""

import concurrent.futures
import dataclasses

import stubs
import suite

pb = stubs.inference


@dataclasses.dataclass
class Stream:
    """All that one Generate call sent so far."""
    tokens: list = dataclasses.field(default_factory=list)
    text: str = ""
    phases: list = dataclasses.field(default_factory=list)
    complete: pb.GenerateComplete = None


def greedy(prompt, tokens, ignore_eos=True):
    """A request for the most probable continuation; `prompt` is a text or token ids."""
    request = pb.GenerateRequest(sampling=pb.SamplingParameters(temperature=0),
                                 stopping=pb.StoppingParameters(max_tokens=tokens, ignore_eos=ignore_eos))
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.tokens.ids.extend(prompt)
    return request


def collect(call, on_event=lambda stream: None):
    """Reads a Generate call to its end; grpc.RpcError if that is an error."""
    stream = Stream()
    for response in call:
        event = response.WhichOneof("event")
        if event == "progress":
            stream.phases.append(response.progress.phase)
        elif event == "chunk":
            stream.tokens.extend(response.chunk.tokens)
            stream.text += response.chunk.text
        else:
            assert stream.complete is None, "a second `complete`"
            stream.complete = response.complete
        on_event(stream)
    assert stream.complete is not None, "a stream that ended well without `complete`"
    return stream


def generate(cluster, request, on_event=lambda stream: None, timeout=10 * suite.PATIENCE):
    return collect(cluster.inference.Generate(request, timeout=timeout), on_event)


def generate_all(cluster, requests, at_once):
    """The streams of all requests, in their order, so many at a time."""
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda request: generate(cluster, request), requests))


def score(cluster, tokens, timeout=10 * suite.PATIENCE):
    """log p of every token but the first."""
    request = pb.ScoreRequest(tokens=pb.TokenIds(ids=tokens))
    response = cluster.inference.Score(request, timeout=timeout)
    assert list(response.tokens) == list(tokens)
    assert len(response.log_probabilities) == len(tokens) - 1
    return response


def tokenize(cluster, text):
    return list(cluster.inference.Tokenize(pb.TokenizeRequest(text=text), timeout=suite.PATIENCE).tokens)
