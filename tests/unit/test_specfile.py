from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.errors import SpecError
from batchdet.spec import _CLASS_PATH, PATTERN_WORDS, JobSpec
from batchdet.specfile import dump_job, load_job, parse_job

GOOD = """name: street
source: {uri: s3://bucket/shards/*.tar}
model:
  uri: builtin:sample
  score_threshold: 0.3
  classes: [car, 3]
output: {uri: /tmp/out}
"""


def test_good_spec() -> None:
    spec = parse_job(GOOD, "job.yaml")
    assert spec.model.score_threshold == 0.3
    assert spec.model.classes == ("car", 3)
    assert spec.policy.max_failed_fraction == 0.01


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("score_threshold", "score_treshold"), "job.yaml:5: model.score_treshold: unknown key; did you mean"),
        (("0.3", "1.5"), "job.yaml:5: model.score_threshold: found 1.5; it should be less than or equal to 1"),
        (("0.3", "'high'"), 'job.yaml:5: model.score_threshold: found "high"; it should be a number'),
        (("0.3", "no"), "job.yaml:5: model.score_threshold: 'no' is read differently"),
        (("0.3", "1e3"), "job.yaml:5: model.score_threshold: '1e3' is read differently"),
        (("0.3", "012"), "job.yaml:5: model.score_threshold: '012' is read differently"),
        (("0.3", "1_000"), "job.yaml:5: model.score_threshold: '1_000' is read differently"),
        (("0.3", "0x1F"), "job.yaml:5: model.score_threshold: '0x1F' is read differently"),
        (("0.3", "12:30"), "job.yaml:5: model.score_threshold: '12:30' is read differently"),
        (("0.3", ".inf"), "job.yaml:5: model.score_threshold: '.inf' is read differently"),
        (("output: {uri: /tmp/out}", ""), "job.yaml: output: this key is missing"),
        (("output:", "name: again\noutput:"), "job.yaml:7: name: this key stands twice"),
        (("[car, 3]", "&x [car]"), "job.yaml:6: anchors and aliases"),
        (("[car, 3]", "!!python/object:os.system [car]"), "job.yaml:6: the tag tag:yaml.org"),
        (("[car, 3]", "[" * 50), "job.yaml:6: nested deeper than 12 levels"),
        (("[car, 3]", "[car"), "not valid YAML"),
        (("s3://bucket", "s3://key:secret@bucket"), "job.yaml:2: source.uri: holds a user name and password"),
        (("bucket", "AKIAABCDEFGHIJKLMNOP"), "job.yaml:2: source.uri: holds an AWS access key"),
        (("bucket", "${BATCHDET_NOT_SET}"), "job.yaml:2: source.uri: the environment variable BATCHDET_NOT_SET is not"),
        (("{uri: s3", "{format: tar, uri: s3"), "job.yaml:2: source.format: found \"tar\"; it should be 'auto', 'web"),
        (("street", "two words"), 'job.yaml:1: name: found "two words"; use at most 63 letters'),
        (("0.3", "0.3\n    high"), "job.yaml:5: a value goes on until line 6"),
        (("name: street", "name:street"), "job.yaml:1: a blank is missing after the colon; write 'name: street'"),
        (("  score_threshold: ", "  score_threshold:"), "job.yaml:5: a blank is missing after the colon"),
        (("output: {uri: /tmp/out}", "output:\n  uri: /o\n  part_rows:5000"), "job.yaml:9: a blank is missing after"),
        (("output: {uri: /tmp/out}", "output:\n  uri:/o"), "job.yaml:7: output: a blank is missing after the colon"),
        (("output: {uri: /tmp/out}", "output:\n\turi: /o"), "job.yaml:8: not valid YAML: found a tab"),
    ],
)
@pytest.mark.acceptance("S10", "S13")
def test_mistakes_name_line_key_and_remedy(change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(GOOD.replace(*change), "job.yaml")
    assert str(caught.value).startswith(sentence) or sentence in str(caught.value)
    assert caught.value.exit_status == 2


def test_every_mistake_is_named() -> None:
    text = GOOD.replace("0.3", "7").replace("street", "a b") + "extra: 1\n"
    with pytest.raises(SpecError) as caught:
        parse_job(text, "job.yaml")
    assert len(str(caught.value).splitlines()) == 3


def test_a_place_may_be_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    short = "name: street\nsource: photos\nmodel: builtin:sample\noutput: ${OUT}\n"
    monkeypatch.setenv("OUT", "out")
    long = "name: street\nsource: {uri: photos}\nmodel: {uri: 'builtin:sample'}\noutput: {uri: out}\n"
    assert parse_job(short, "job.yaml") == parse_job(long, "job.yaml")
    changed = parse_job(short, "job.yaml", ["source.format=folder", "model=my.onnx", "model.score_threshold=0.5"])
    assert (changed.source.uri, changed.source.format) == ("photos", "folder")
    assert (changed.model.uri, changed.model.score_threshold) == ("my.onnx", 0.5)
    python = {"name": "street", "source": "photos", "model": "builtin:sample", "output": "out"}
    jsonschema.validate(python, JobSpec.model_json_schema())
    with pytest.raises(SpecError) as caught:
        parse_job(short.replace("photos", "5"), "job.yaml")
    assert (caught.value.key, caught.value.code) == ("source", "spec.value")


def test_each_mistake_has_its_code_and_key() -> None:
    text = GOOD.replace("score_threshold: 0.3", "score_treshold: 0.3").replace("output: {uri: /tmp/out}", "")
    with pytest.raises(SpecError) as caught:
        parse_job(text, "job.yaml")
    found = {(one["code"], one["key"]) for one in caught.value.to_dict()["errors"]}
    assert found == {("spec.unknown_key", "model.score_treshold"), ("spec.missing_key", "output")}


def _patterns(schema: Any) -> set[str]:
    inside = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    found = {schema["pattern"]} if isinstance(schema, dict) and isinstance(schema.get("pattern"), str) else set()
    return found.union(*map(_patterns, inside))


def test_no_pattern_is_shown_as_advice() -> None:
    own_message = {_CLASS_PATH.pattern}  # of model.family
    assert _patterns(JobSpec.model_json_schema()) - own_message == set(PATTERN_WORDS)


def test_members_of_a_union_are_one_sentence() -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(GOOD + "compute: {actors: 0}\n", "job.yaml")
    assert str(caught.value) == (
        "job.yaml:8: compute.actors: found 0; it should be 'auto' or greater than or equal to 1"
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.scor=3", "--set model.scor=3: model.scor: unknown key"),
        ("compute.actors=many", "--set compute.actors=many: compute.actors: found"),
        ("nonsense", "--set nonsense: write it as key.path=value"),
        ("name.x=1", "--set name.x=1: name is a value and has no keys below it"),
    ],
)
def test_wrong_override(override: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=f"^{sentence}"):
        parse_job(GOOD, "job.yaml", [override])


def test_overrides_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "photos")
    text = GOOD.replace("s3://bucket", "s3://${BUCKET}")
    spec = parse_job(text, "job.yaml", ["compute.actors=2", "model.classes=[dog]", "output.uri=s3://${BUCKET}/out"])
    assert spec.source.uri == "s3://photos/shards/*.tar"
    assert spec.output.uri == "s3://photos/out"
    assert spec.compute.actors == 2
    assert spec.model.classes == ("dog",)


def test_missing_and_binary_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SpecError, match="there is no such job file"):
        load_job(str(tmp_path / "nope.yaml"))
    (tmp_path / "nopes.yaml").write_text("")
    with pytest.raises(SpecError, match=r"did you mean 'nopes\.yaml'") as caught:
        load_job(str(tmp_path / "nope.yaml"))
    assert caught.value.code == "spec.not_found"
    with pytest.raises(SpecError, match="batchdet label") as caught:
        load_job(str(tmp_path))
    assert caught.value.code == "spec.folder"
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="UTF-8"):
        load_job(str(tmp_path / "job.yaml"))


@pytest.mark.acceptance("S10")
def test_bomb_is_refused_at_once() -> None:
    bomb = "a: &a [x]\n" + "\n".join(f"b{i}: &b{i} [*a, *a]" for i in range(1000))
    with pytest.raises(SpecError, match="anchors and aliases"):
        parse_job(bomb, "job.yaml")
    with pytest.raises(SpecError, match="at most 262144"):
        parse_job("a" * 2_000_000, "job.yaml")


AWKWARD = st.sampled_from(["no", "1e3", "012", "null", "true", "~", "3", "0.5", "a: b", "#x", "ä", "- x", "1_0"])


@given(
    AWKWARD | st.text("abc xyz:/{}[]#'\"!&*-", min_size=1).filter(lambda t: t.strip() == t),
    st.floats(0, 1),
    st.lists(AWKWARD | st.integers(0, 10**6), max_size=3),
    st.sampled_from(["auto", 1, 7]),
)
def test_load_of_dump_is_the_same(uri: str, score: float, classes: list[str | int], actors: str | int) -> None:
    spec = JobSpec.model_validate(
        {
            "name": "x",
            "source": {"uri": uri},
            "model": {"uri": "m", "score_threshold": score, "classes": tuple(classes) or None},
            "compute": {"actors": actors},
            "output": {"uri": "out"},
        }
    )
    assert parse_job(dump_job(spec), "dump") == spec


@given(st.text(max_size=200))
@pytest.mark.acceptance("S24")
def test_any_text_gives_a_spec_or_a_spec_error(text: str) -> None:
    with pytest.raises(SpecError):
        parse_job(text, "fuzz")


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("score_threshold: 0.3", "classes: []", "model.classes", "should hold an entry"),
        ("score_threshold: 0.3", "classes: [1.5]", "model.classes[0]", "a text or an integer"),
        ("score_threshold: 0.3", "classes: car", "model.classes", "a list, such as [a, b]"),
        ("score_threshold: 0.3", "trusted: 1", "model.trusted", "true or false"),
        ("score_threshold: 0.3", "labels: ''", "model.labels", "found nothing"),
        ("score_threshold: 0.3", "canvas:", "model.canvas", "found nothing; it should hold keys"),
        ("score_threshold: 0.3", "segment_rows: 3", "model.segment_rows", "segment_rows is a key of compute"),
        (
            "name: x",
            "name: x\nmodel.score_threshold: 0.4",
            "model.score_threshold",
            "score_threshold is a key of model",
        ),
    ],
)
def test_what_would_be_right_is_said_in_the_words_of_yaml(old: str, new: str, key: str, words: str) -> None:
    text = "name: x\nsource: a\noutput: b\nmodel:\n  uri: m.onnx\n  score_threshold: 0.3\n"
    with pytest.raises(SpecError) as caught:
        parse_job(text.replace(old, new), "job.yaml")
    assert caught.value.key == key
    assert words in caught.value.message
    for foreign in ("string", "array", "object", "tuple", "String", "validation", "boolean"):
        assert foreign not in caught.value.message


def test_the_limit_without_progress_is_longer_than_an_image() -> None:
    def compute(text: str) -> Any:
        return parse_job(f"{GOOD}compute: {{{text}}}\n", "job.yaml").compute

    assert compute("").no_progress_s == 600
    assert compute("image_timeout_s: 3600").no_progress_s == 10_800
    assert compute("no_progress_timeout_s: 61").no_progress_s == 61
    for text in ("no_progress_timeout_s: 60", "image_timeout_s: 90, no_progress_timeout_s: 90"):
        with pytest.raises(SpecError) as raised:
            compute(text)
        assert raised.value.key == "compute.no_progress_timeout_s"
