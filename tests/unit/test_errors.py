import pickle

import pytest

from batchdet import errors


def _subclasses(kind: type[errors.BatchdetError]) -> set[type[errors.BatchdetError]]:
    return {kind} | {each for direct in kind.__subclasses__() for each in _subclasses(direct)}


@pytest.mark.parametrize("kind", sorted(_subclasses(errors.BatchdetError), key=lambda k: k.__name__))
def test_every_error_pickles_and_is_drawn(kind: type[errors.BatchdetError]) -> None:
    others = {errors.ImageError: ("corrupt", "why"), errors.SpecErrors: ((errors.Mistake("why", "a.b", "key"),),)}
    error = kind(*others.get(kind, ("why",)))  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.exit_status, vars(again)) == (error.message, error.exit_status, vars(error))
    if kind.__module__ == "batchdet.errors":
        assert errors.__doc__ is not None
        assert kind.__name__ in errors.__doc__


def test_exit_statuses() -> None:
    assert {k.__name__: k.exit_status for k in _subclasses(errors.BatchdetError)}["TooManyFailures"] == 3
    assert errors.Interrupted("stopped", 143).exit_status == 143


def test_an_error_has_the_code_of_its_class_or_a_narrower_one() -> None:
    wide = errors.SourceError("no")
    narrow = errors.SourceError("no", code="source.header", key="list.csv:1", hint="add a header")
    assert (wide.code, wide.key, wide.hint) == ("source.unreadable", None, None)
    again = pickle.loads(pickle.dumps(narrow))
    assert (again.code, again.key, again.hint) == ("source.header", "list.csv:1", "add a header")


def test_several_mistakes_are_one_error_with_all_of_them() -> None:
    both = errors.SpecErrors([errors.Mistake("a", "spec.value", "x.y"), errors.Mistake("b", "spec.missing_key", "z")])
    assert both.message == "a\nb"
    found = both.to_dict()
    assert found["error"] == {"message": "a", "code": "spec.value", "key": "x.y", "hint": None, "exit_status": 2}
    assert [each["key"] for each in found["errors"]] == ["x.y", "z"]
    assert "errors" not in errors.SourceEmpty("nothing").to_dict()
