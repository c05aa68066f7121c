import inspect
import re

import pytest

from fedge import errors
from fedge.errors import FedgeError, InputError, RefusedError

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
def test_every_error_ends_a_command_with_a_code_scripts_can_rely_on(kind: type[FedgeError]) -> None:
    assert issubclass(kind, FedgeError)
    assert kind("why").exit_code == (2 if issubclass(kind, InputError) else 1)
    assert str(kind("why")) == "why"
    assert kind.__doc__


def test_what_a_user_gave_and_what_came_from_elsewhere_never_mix() -> None:
    assert not [k for k in ALL if issubclass(k, InputError) and issubclass(k, RefusedError)]
    leaves = [k for k in ALL if not k.__subclasses__()]
    assert all(issubclass(k, InputError | RefusedError) for k in leaves)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    assert set(re.findall(r"\b\w+Error_?\b", errors.__doc__)) == {k.__name__ for k in ALL}
