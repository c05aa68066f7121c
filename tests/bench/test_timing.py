"""The clockwork, not the speed: who runs how often, and in which order."""

from fedge.bench._timing import race


def test_jobs_take_turns() -> None:
    turns: list[str] = []

    def job(name: str) -> None:
        if not turns or turns[-1] != name:
            turns.append(name)

    taken = race({"a": lambda: job("a"), "b": lambda: job("b")}, repeats=3)
    assert turns == ["a", "b"] * 4  # once to warm up, then three times
    assert list(taken) == ["a", "b"]
    assert all(s.wall > 0 and s.cpu >= 0 for s in taken.values())
