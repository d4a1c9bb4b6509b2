"""The demo model without the firing counts that its file holds, as most models come."""

import struct

import suite

_ARRAY, _STRING = 9, 8
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TOKENS_KEY = b"isotherm.profile.tokens"
_COUNTS = b".ffn_act_counts"
_ALIGNMENT = 32


class _Header:
    """Walks over the entries of a GGUF v3 file that is trusted to be well formed."""

    def __init__(self, content):
        self.content, self.at = content, 24

    def take(self, layout):
        values = struct.unpack_from(layout, self.content, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self):
        (size,) = self.take("<Q")
        self.at += size
        return self.content[self.at - size:self.at]

    def skip_value(self, kind):
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            element, count = self.take("<IQ")
            for _ in range(count):
                self.skip_value(element)
        else:
            self.at += _SIZES[kind]

    def pair(self):
        """Key and bytes of a metadata entry."""
        start, key = self.at, self.string()
        self.skip_value(self.take("<I")[0])
        return key, self.content[start:self.at]

    def tensor(self):
        """Name and bytes of a tensor's entry."""
        start, name = self.at, self.string()
        (rank,) = self.take("<I")
        self.at += 8 * rank + 4 + 8
        return name, self.content[start:self.at]


def write(path):
    """Writes the model to `path`; the counts' data stay in the file, where nothing points at them."""
    content = suite.MODEL.read_bytes()
    tensors, pairs = struct.unpack_from("<QQ", content, 8)
    header = _Header(content)
    kept_pairs = [entry for key, entry in (header.pair() for _ in range(pairs)) if key != _TOKENS_KEY]
    kept_tensors = [entry for name, entry in (header.tensor() for _ in range(tensors)) if not name.endswith(_COUNTS)]
    assert len(kept_pairs) == pairs - 1 and len(kept_tensors) < tensors
    data = content[-(-header.at // _ALIGNMENT) * _ALIGNMENT:]
    new = b"".join([content[:8], struct.pack("<QQ", len(kept_tensors), len(kept_pairs)), *kept_pairs, *kept_tensors])
    path.write_bytes(new + bytes(-len(new) % _ALIGNMENT) + data)
    return path
