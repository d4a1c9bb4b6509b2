"""The demo model's prompts, its reference and its validation text."""

import hashlib
import itertools
import json

import numpy

import stubs
import suite

EOS = 2
END_OF_DOCUMENT = "<|endoftext|>"

_OPENINGS = (
    "Once upon a time", "In a deep forest", "Far away by the sea", "On a cold winter night", "When the war was over",
    "One fine morning", "Long before you were born", "At the edge of the village", "After many years", "Beyond the hills")
_HEROES = (
    "a poor woodcutter", "the youngest son", "an old soldier", "the king's daughter", "a clever fox",
    "two brothers", "a little tailor", "the miller's wife", "a wicked stepmother", "the black horse")


def prompts(count):
    """Up to 100 different beginnings."""
    pairs = list(itertools.product(_OPENINGS, _HEROES))
    # Neighbours differ in both halves, whatever the count.
    return [" ".join(pairs[(37 * i) % len(pairs)]) for i in range(count)]


def reference():
    """What transformers computes in F32 from the same file; see tools/python/isotherm_tools/tales_reference.py."""
    return json.loads((suite.SOURCE / "models/tales/reference.json").read_text(encoding="utf-8"))


def _documents(text):
    """As tools/python/isotherm_tools/tales_text.py divides a corpus."""
    documents = [[]]
    for line in text.split("\n"):
        if line == END_OF_DOCUMENT:
            documents.append([])
        else:
            documents[-1].append(line)
    texts = ("\n".join(lines).strip("\n") for lines in documents)
    return [text for text in texts if text]


def validation_windows(cluster):
    """The windows of valid.txt, each the model's context long, tokenized by the gateway."""
    text = suite.test_data("tales/valid.txt").read_text(encoding="utf-8")
    ids = []
    for document in _documents(text):
        request = stubs.inference.TokenizeRequest(text=document, add_bos=False)
        ids.extend(cluster.inference.Tokenize(request, timeout=suite.PATIENCE).tokens)
        ids.append(EOS)
    expected = reference()
    stream = numpy.asarray(ids, dtype="<i4")
    assert len(ids) == expected["tokens"]["count"], f"{len(ids)} tokens instead of {expected['tokens']['count']}"
    assert hashlib.sha256(stream.tobytes()).hexdigest() == expected["tokens"]["sha256"], "other tokens than the reference's"
    body = expected["context"] - 1
    return [[1, *ids[start:start + body]] for start in range(0, len(ids) - body + 1, body)]
