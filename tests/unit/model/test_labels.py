import pytest

from batchdet.errors import SpecError
from batchdet.model.labels import COCO_80, class_numbers, find_labels, label, numbers, parse_names


def test_coco_has_eighty() -> None:
    assert len(set(COCO_80)) == 80
    assert (COCO_80[0], COCO_80[79]) == ("person", "toothbrush")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("{0: 'cat', 1: 'dog'}", ("cat", "dog")),
        ('{"0": "cat", "1": "dog"}', ("cat", "dog")),
        ("['cat', 'dog']", ("cat", "dog")),
        ("{0: 'cat', 2: 'dog'}", ("cat", "class_1", "dog")),
        ('{0: "it\'s", 1: "Größe"}', ("it's", "Größe")),
        ("", ()),
        ("cat, dog", ()),
        ("{-1: 'cat'}", ()),
        ("{999999999: 'cat'}", ()),
        ("{'cat': 0}", ()),
        ("__import__('os').system('true')", ()),
        ("[" * 5000, ()),
    ],
)
def test_names(text: str, labels: tuple[str, ...]) -> None:
    assert parse_names(text) == labels


@pytest.mark.parametrize(
    ("text", "value"), [("32", (32,)), ("[640, 480]", (640, 480)), ("x", ()), ("-1", ()), ("", ())]
)
def test_numbers(text: str, value: tuple[int, ...]) -> None:
    assert numbers(text) == value


def test_metadata_comes_first_then_coco_then_numbers() -> None:
    named = ("cat", "dog")
    assert find_labels(None, named, 2, False)[0] == ("cat", "dog")
    assert find_labels(None, named, None, True)[0] == ("cat", "dog")
    assert find_labels(None, (), 3, False)[0] == ("class_0", "class_1", "class_2")
    assert find_labels(None, (), 80, False)[0] == COCO_80
    labels, reason = find_labels(None, (), None, True)
    assert labels == COCO_80
    assert "assumption" in reason
    assert find_labels(None, (), None, False)[0] == ()


@pytest.mark.parametrize(("named", "class_count"), [((), 2), (("a", "b"), None), (("a",), 2)])
def test_labels_of_a_file_come_first_and_contradict_nothing(named: tuple[str, ...], class_count: int | None) -> None:
    assert find_labels(("l.txt", ("cat", "dog")), named, class_count, False) == (("cat", "dog"), "from l.txt")
    with pytest.raises(SpecError) as caught:
        find_labels(("l.txt", ("cat",)), named, class_count, False)
    assert (caught.value.code, caught.value.key) == ("model.labels", "model.labels")
    assert "l.txt holds 1 label, the model has 2 classes" in caught.value.message


def test_the_text_of_a_class() -> None:
    assert label(("cat", "dog"), 1) == "dog"
    assert label(("cat", "dog"), 2) == "class_2"
    assert label((), 7) == "class_7"


def test_wanted_classes() -> None:
    assert class_numbers(["dog", 0, "cat"], COCO_80) == (0, 15, 16)
    assert class_numbers([7], ()) == (7,)
    assert class_numbers(["twin"], ("twin", "x", "twin")) == (0, 2)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("persn", "no class 'persn'; did you mean 'person'"),
        ("zzz", "no class 'zzz'; it has person, bicycle"),
        (80, "no class number 80; they go from 0 to 79"),
        (-1, "no class number -1"),
    ],
)
def test_classes_that_are_not_there(wanted: str | int, words: str) -> None:
    with pytest.raises(SpecError, match=rf"^model\.classes: the model has {words}"):
        class_numbers([wanted], COCO_80)
