"""The exception tree as it is drawn is the exception tree as it is."""

from __future__ import annotations

import inspect
import re

import pytest

from sut import errors


def drawn() -> dict[str, str]:
    """Class to parent, read from the drawing in the module's docstring."""
    parents, trunk = {}, []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│├└─ ]*)([A-Z]\w+(?:Error|\b))(?:$| {2,})", line):
            depth = len(match[1]) // 4
            del trunk[depth:]
            parents[match[2]] = trunk[-1] if trunk else "Exception"
            trunk.append(match[2])
    return parents


def test_the_drawing_is_the_tree():
    classes = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == "sut.errors"}
    assert drawn() == {name: cls.__base__.__name__ for name, cls in classes.items()}


def test_every_kind_of_failure_has_a_name_of_its_own():
    kinds = [cls.kind for cls in (errors.QueryFailed, *errors.QueryFailed.__subclasses__())]
    assert len(kinds) == len(set(kinds)), "results count failures by kind"


@pytest.mark.parametrize("cls", errors.QueryFailed.__subclasses__())
def test_a_kind_is_the_class_name_in_results_spelling(cls):
    assert cls.kind == re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
