"""How both sides name the weights that a client holds, in 8 bytes, without the server keeping them.

A client's weights follow from the snapshot it was given and the steps it took since, and each of these is a
byte string that both sides have seen. So the name is a hash chain over them: a snapshot begins a chain, every
other step extends it. Most clients share one chain. A client that was away and got a fresh quantized
snapshot holds slightly other weights than the rest and goes on with a chain of its own, which costs the
server 8 bytes instead of another model. A client that does not hold what its task is based on arrives at
another name, and says so.
"""

import hashlib
from collections.abc import Iterable

from fedge.federated.frames import HASH_BYTES, Step, StepKind


def begin(snapshot: bytes) -> bytes:
    """The name of the weights of a snapshot."""
    return _hash(b"snapshot", snapshot)


def follow(name: bytes, steps: Iterable[Step]) -> bytes:
    """The name of the weights after some steps from the weights called ``name``."""
    for step in steps:
        if step.kind is StepKind.SNAPSHOT:
            name = begin(step.payload)
        else:
            name = _hash(name + bytes([step.kind]), step.payload)
    return name


def _hash(prefix: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(prefix + content, digest_size=HASH_BYTES, person=b"fedge lineage").digest()
