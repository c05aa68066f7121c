"""What ``fedge bench`` measures, one module a benchmark.

Each offers ``run(...) -> dict``, the JSON object of ``--json``, and ``lines(result) -> list[str]``, the same
for a person. Progress goes to standard error. A benchmark says what it measured, target missed or not; it
never fails for being slow.
"""
