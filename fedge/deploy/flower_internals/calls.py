"""What a call to the SuperLink can come to, as errors of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from fedge.errors import UpdateError

_RUN_OVER = (403, 404)


@contextmanager
def reached() -> Iterator[None]:
    """Flower's ways of saying that the SuperLink is away, or another one than before, become one."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        said = f"Flower says {error.response.status_code}: {error.response.text[:200]}"
        if error.response.status_code in _RUN_OVER:
            raise UpdateError(said) from None
        raise ConnectionError(said) from None
    except (httpx.HTTPError, RuntimeError) as error:
        raise ConnectionError(f"the SuperLink cannot be reached: {error}") from None
