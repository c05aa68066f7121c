"""A JSON object with its own checksum: what a device wrote itself, and may find damaged.

    {"content": {...}, "sha256": "..."}

The checksum tells a worn or torn file from a whole one; it is no protection against whoever writes to the
device's disk.
"""

import hashlib
import json
from collections.abc import Mapping

from fedge.errors import PayloadError


def seal(content: Mapping[str, object]) -> bytes:
    """``content`` (what JSON can hold; finite numbers) and its checksum."""
    text = _canonical(content)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"content":{text},"sha256":"{digest}"}}\n'.encode()


def unseal(sealed: bytes, what: str) -> Mapping[str, object]:
    """What :func:`seal` was given.

    Raises:
        PayloadError: it is damaged, or nothing that :func:`seal` makes; the message says that ``what`` is.
    """
    try:
        content = json.loads(sealed)["content"]
        whole = isinstance(content, dict) and seal(content) == sealed
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise PayloadError(f"{what} is damaged")
    return content  # type: ignore[no-any-return]  # an object: it was checked above


def _canonical(content: Mapping[str, object]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
