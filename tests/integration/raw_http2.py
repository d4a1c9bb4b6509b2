"""Connections that speak just enough HTTP/2, or none, to misbehave."""

import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
END_STREAM, END_HEADERS = 0x1, 0x4


def frame(kind, payload=b"", flags=0, stream=0):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _literal(name, value):
    """A header field without indexing or Huffman coding (RFC 7541, 6.2.2); short ones only."""
    assert len(name) < 127 and len(value) < 127
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_headers(path):
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"localhost"),
              (b"te", b"trailers"), (b"content-type", b"application/grpc"))
    return b"".join(_literal(name, value) for name, value in fields)


def call(path, request, window):
    """What a client sends for one call, with one request, on a connection of its own: stream 1, which may answer with so many bytes."""
    initial_window_size = struct.pack(">HI", 4, window)
    return (PREFACE + frame(SETTINGS, initial_window_size) + frame(HEADERS, request_headers(path), END_HEADERS, 1) +
            frame(DATA, struct.pack(">BI", 0, len(request)) + request, END_STREAM, 1))


def more_window(size, stream):
    return frame(WINDOW_UPDATE, struct.pack(">I", size), stream=stream)


class Connection:
    """A connection to a port of loopback, or to the path of a Unix socket."""

    def __init__(self, address, first_bytes=b""):
        if isinstance(address, int):
            self.socket = socket.create_connection(("127.0.0.1", address), timeout=30)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(30)
            self.socket.connect(address)
        self.send(first_bytes)

    def send(self, data):
        """False if the server has hung up."""
        try:
            self.socket.sendall(data)
            return True
        except OSError:
            return False

    def seconds_until_closed(self, patience):
        """How long the server kept the connection from now on; AssertionError if longer than `patience`."""
        start = time.monotonic()
        self.socket.settimeout(patience)
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            raise AssertionError(f"the connection was still open after {patience} s") from None
        except OSError:
            pass
        return time.monotonic() - start

    def received(self, seconds):
        """What the server says until it has nothing more to say for so long."""
        self.socket.settimeout(seconds)
        data = b""
        try:
            while part := self.socket.recv(1 << 16):
                data += part
        except OSError:
            pass
        return data

    def close(self):
        self.socket.close()
