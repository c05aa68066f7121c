"""The error that its client answers for: so often in a row, and the client is barred."""

from fedge.errors import UpdateError


class UnsoundError(UpdateError):
    """An update, or the lack of one, that a client answers for: it shows under its own key or certificate."""
