"""The settings of a run: what there are (``settings.py``), how they are read, what contradicts itself."""

from fedge.config.checks import redistils
from fedge.config.reading import SCENARIOS, config_from, config_text, difference, load_config, scenarios
from fedge.config.settings import (
    Config,
    Data,
    Fleet,
    Link,
    Local,
    Quantize,
    Redistill,
    Release,
    Rounds,
    Student,
    Teacher,
)

__all__ = [
    "SCENARIOS",
    "Config",
    "Data",
    "Fleet",
    "Link",
    "Local",
    "Quantize",
    "Redistill",
    "Release",
    "Rounds",
    "Student",
    "Teacher",
    "config_from",
    "config_text",
    "difference",
    "load_config",
    "redistils",
    "scenarios",
]
