"""Prometheus' text format, as far as these tests read it."""

import re
import urllib.request

import suite

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Metrics:
    """One scrape."""

    def __init__(self, text):
        self._samples = []
        for line in text.splitlines():
            if line.startswith("#") or not line:
                continue
            sample = _SAMPLE.match(line)
            assert sample is not None, f"no sample of Prometheus' text format: {line!r}"
            labels = dict(_LABEL.findall(sample.group(2) or ""))
            self._samples.append((sample.group(1), labels, float(sample.group(3))))

    def values(self, name, **labels):
        """The values of every series of that name that has these labels."""
        return [value for found, has, value in self._samples
                if found == name and all(has.get(key) == wanted for key, wanted in labels.items())]

    def total(self, name, **labels):
        return sum(self.values(name, **labels))


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=suite.PATIENCE) as response:
        return Metrics(response.read().decode())
