"""What requests may take of this machine, one of them and all together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before memory is taken.

    Attributes:
        head_bytes: request line and headers.
        headers: how many headers.
        body_bytes: a request's body, as it comes and after it has been inflated.
        json_bytes: a body that is JSON alone: nobody else is answered while it is read.
        json_head_bytes: the JSON before binary data.
        windows: windows in one request.
        values: numbers in the windows of one request (a single window may have more).
        buffered_bytes: bodies that are still coming in, of all connections together.
        connections: open connections.
        pipelined: requests on one connection that come at once, none of them waiting for an answer.
        receive_seconds: from the first byte of a request to its last, or from connecting to the first byte.
        idle_seconds: between two requests on a connection.
        stalled_seconds: for which a client may take nothing of its answer.
    """

    head_bytes: int = 16_384
    headers: int = 64
    body_bytes: int = (1 << 23) + (1 << 16)
    json_bytes: int = 1 << 21
    json_head_bytes: int = 1 << 16
    windows: int = 1024
    values: int = 1 << 20
    buffered_bytes: int = 1 << 26
    connections: int = 1024
    pipelined: int = 16
    receive_seconds: float = 30.0
    idle_seconds: float = 75.0
    stalled_seconds: float = 30.0
