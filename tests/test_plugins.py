import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge import plugins
from fedge.errors import ConfigError

KINDS = ["codec", "task", "distillation loss"]
FOLDERS = {"codec": "codec", "task": "tasks", "distillation loss": "distill"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_the_registry(kind: str) -> None:
    folder = Path(plugins.__file__).parent / FOLDERS[kind]
    files = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    assert plugins.names(kind) == files
    assert files


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in KINDS for n in plugins.names(k)])
def test_every_plugin_loads_and_says_what_it_is(kind: str, name: str) -> None:
    module = plugins.load(kind, name)
    assert module is importlib.import_module(f"fedge.{FOLDERS[kind]}.{name}")
    assert module.__doc__


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "_fit", "__init__", "os", "../errors", "fedge.errors", "raw.os", "/etc/passwd", "\0"],
)
def test_nothing_outside_the_folder_is_ever_imported(kind: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown {kind}"):
        plugins.load(kind, name)


@given(st.text(max_size=30))
def test_any_other_name_is_refused_with_the_known_ones(name: str) -> None:
    known = plugins.names("codec")
    if name not in known:
        with pytest.raises(ConfigError) as caught:
            plugins.load("codec", name)
        assert any(word in str(caught.value) for word in known)


def test_a_slip_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown codec 'ternry'; did you mean 'ternary'\?"):
        plugins.load("codec", "ternry")


def test_where_nothing_is_near_all_names_are_listed() -> None:
    assert plugins.nearest("zzz", ["alpha", "beta"]) == "known: alpha, beta"
