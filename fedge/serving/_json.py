"""Reading a request's JSON: every value has a type and bounds. What is wrong is a :class:`RequestError`."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from fedge.errors import RefusedError

MOST = {b'"': 4096, b"{": 64, b"[": 1 << 18}
"""What JSON may hold of each mark: an empty list takes 64 bytes of memory, a short text 50."""
MAX_TEXT = 1024
MAX_SIZE = 1 << 31


class RequestError(RefusedError):
    """A request that is not answered with scores; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def loads(text: bytes) -> Mapping[str, Any]:
    """The JSON object in ``text``, if it is small in memory as well."""
    for mark, most in MOST.items():
        if text.count(mark) > most:
            hint = "; give data as one flat list" if mark == b"[" else ""
            raise RequestError(413, f"the request's JSON has more than {most} {mark.decode()}{hint}")
    try:
        raw = _DECODER.decode(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the request is not JSON: {str(error)[:200]}") from None
    return raw if isinstance(raw, dict) else _wrong("the request", "a JSON object")


def to_json(raw: object) -> bytes:
    """``raw`` as JSON, without spaces."""
    return json.dumps(raw, separators=(",", ":")).encode()


def as_list(raw: object, what: str) -> list[Any]:
    """A JSON list."""
    return raw if isinstance(raw, list) else _wrong(what, "a list")


def as_object(raw: object, what: str) -> Mapping[str, Any]:
    """A JSON object; what is left out is an empty one."""
    return {} if raw is None else raw if isinstance(raw, dict) else _wrong(what, "an object")


def as_text(raw: object, what: str) -> str:
    """A text of at most ``MAX_TEXT`` characters."""
    ok = isinstance(raw, str) and len(raw) <= MAX_TEXT
    return raw if ok and isinstance(raw, str) else _wrong(what, f"a text of at most {MAX_TEXT} characters")


def as_size(raw: object, what: str) -> int:
    """A whole number from 0; a boolean is none."""
    ok = isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < MAX_SIZE
    return raw if ok and isinstance(raw, int) else _wrong(what, f"a whole number from 0 to {MAX_SIZE - 1}")


def as_flag(raw: Mapping[str, Any], key: str, default: bool) -> bool:
    """The boolean ``raw[key]``."""
    value = raw.get(key, default)
    return value if isinstance(value, bool) else _wrong(key, "true or false")


def _wrong(what: str, expected: str) -> NoReturn:
    raise RequestError(400, f"{what} must be {expected}")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
