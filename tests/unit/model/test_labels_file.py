"""Files at ``model.labels``: lists of labels in their usual forms are read as written, all else is refused by name."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.errors import SpecError
from batchdet.model.labels_file import read_labels

DATA_YAML = """# Ultralytics YOLO dataset
path: ../datasets/x  # root
train: images/train
val: images/val
nc: 3
names:
  0: person
  1: no
  2: "1e3"
download: |
  from pathlib import Path
  Path("x").mkdir()
"""


def written(tmp_path: Path, name: str, text: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("l.txt", "cat\ndog\n", ["cat", "dog"]),
        ("l.txt", "\ufeffcat\r\ndog\r\n\r\n", ["cat", "dog"]),
        ("coco.names", "cat\nhot dog", ["cat", "hot dog"]),
        ("l.txt", "cat", ["cat"]),
        ("l.json", '["cat", "dog"]', ["cat", "dog"]),
        ("l.json", '{"1": "dog", "0": "cat"}', ["cat", "dog"]),
        ("l.json", '{"names": ["cat", "dog"]}', ["cat", "dog"]),
        ("l.txt", '["cat", "dog"]', ["cat", "dog"]),
        ("l.txt", "{0: 'cat', 1: 'dog'}", ["cat", "dog"]),
        ("data.yaml", DATA_YAML, ["person", "no", "1e3"]),
        ("data.txt", DATA_YAML, ["person", "no", "1e3"]),
        ("d.yml", "names: [cat, dog]\n", ["cat", "dog"]),
        ("d.yaml", "names:\n- cat\n- dog\nnc: 2\n", ["cat", "dog"]),
        ("d.yaml", "- cat\n- off\n", ["cat", "off"]),
        ("d.yaml", "0: cat\n2: dog\n", ["cat", "class_1", "dog"]),
        ("d.txt", "0: cat\n1: dog\n", ["cat", "dog"]),
        ("d.txt", "- cat\n- hot dog\n", ["cat", "hot dog"]),
        ("d.csv", "cat\nhot dog\n", ["cat", "hot dog"]),
        ("d.txt", "0\n1\n2\n", ["0", "1", "2"]),
        ("imagenet.txt", "tench, Tinca tinca\n7up\ncock\n", ["tench, Tinca tinca", "7up", "cock"]),
    ],
)
def test_labels_are_read_as_they_are_written(tmp_path: Path, name: str, text: str, labels: list[str]) -> None:
    assert list(read_labels(written(tmp_path, name, text))) == labels


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 50)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("l.txt", "", "holds no labels"),
        ("l.txt", "0 cat\n1 hot dog\n", "begins each line with a number"),
        ("l.txt", "0 0.5 0.5 0.1 0.2\n1 0.1 0.1 0.1 0.2\n", "begins each line with a number"),
        ("l.txt", "0\tcat\n1\tdog\n", "several columns"),
        ("l.csv", "cat;0\ndog;1\n", "several columns"),
        ("l.csv", "id,name\n0,cat\n", "several columns"),
        ("l.csv", "Name\ncat\ndog\n", "the name of a column"),
        ("l.txt", "'cat'\n'dog'\n", "quotation marks"),
        ("l.jsonl", '"cat"\n"dog"\n', "quotation marks"),
        ("l.txt", "cat,\ndog,\n", "ends each line"),
        ("l.txt", "cat;dog\n", "one line"),
        ("obj.data", "classes= 2\nnames = obj.names\n", "setting"),
        ("l.txt", "img/1.jpg\nimg/2.JPG\n", "names a file"),
        ("l.txt", b"\xff\xfe\x00", "not a text file in UTF-8"),
        ("l.txt", b"cat\0dog", "binary"),
        ("l.txt", "<!DOCTYPE html><html>404</html>", "HTML"),
        ("l.json", "<html>", "HTML"),
        ("l.json", "cat\n", "no JSON"),
        ("l.json", "[1, 2", "no valid JSON"),
        ("l.json", "[" * 100_000, "no valid JSON"),
        ("l.json", '[{"id": 1, "name": "cat"}]', "a map where a label should be"),
        ("l.json", '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}', "COCO"),
        ("l.json", '{"id2": {"0": "cat"}}', "the keys id2"),
        ("l.json", "[]", "no labels"),
        ("d.yaml", "train: images\nval: images\n", "the keys train, val"),
        ("d.yaml", "names: 3\n", "a single value"),
        ("d.yaml", "names:\n  0: {a: b}\n", "a map where a label should be"),
        ("d.yaml", "names: {0: [x]}\n", "a list where a label should be"),
        ("d.yaml", "names: [cat]\nnc: 2\n", "nc: 2, but names 1"),
        ("d.yaml", "names: [cat\n", "no valid YAML at line"),
        ("d.yaml", "names: !!python/object/apply:os.system [true]\n", "Y"),
        ("d.yaml", "names:\n  999999: cat\n", "class number 999999"),
        ("d.yaml", BOMB + "names: *i\n", "a list where a label should be"),
        ("d.yaml", "names: " + "[" * 20_000, "no valid YAML"),
        ("l.txt", "# my classes\ncat\n", "comment"),
        ("l.txt", "item {\n id: 1\n}\n", "its line 1"),
        ("l.txt", "cat,dog,bird\n", "commas"),
        ("l.txt", "x" * 2_000_000, "bytes"),
        ("l.txt", "x" * 300, "300 characters"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(tmp_path: Path, name: str, text: str | bytes, words: str) -> None:
    uri = written(tmp_path, name, text)
    if "python/object" in str(text):  # a tag is no instruction: the list behind it is a list of texts
        assert read_labels(uri) == ("true",)
        return
    with pytest.raises(SpecError) as caught:
        read_labels(uri)
    assert (caught.value.code, caught.value.key, caught.value.exit_status) == ("model.labels", "model.labels", 2)
    assert words in caught.value.message
    assert name in caught.value.message
    assert len(caught.value.message) < 500


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read_labels(str(tmp_path / "none.txt"))
    assert caught.value.code == "model.labels"
    assert "none.txt" in caught.value.message


LABEL = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=20).map(str.strip).filter(bool)


@given(st.lists(LABEL, min_size=1, max_size=12), st.sampled_from(["list", "map", "names", "numbered"]))
def test_json_keeps_every_label(tmp_path_factory: pytest.TempPathFactory, labels: list[str], form: str) -> None:
    numbered = {str(i): label for i, label in enumerate(labels)}
    value = {"list": labels, "map": numbered, "names": {"names": labels}, "numbered": {"names": numbered}}[form]
    path = tmp_path_factory.mktemp("labels") / "l.json"
    path.write_text(json.dumps(value))
    assert list(read_labels(str(path))) == labels
