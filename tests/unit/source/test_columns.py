import pyarrow as pa
import pytest

from batchdet.errors import SourceError
from batchdet.records.schema import DETECTIONS, IMAGES
from batchdet.source.columns import carried_names, plain_type, require_column, select_columns


def test_names_of_our_own_tables_are_kept_free() -> None:
    names = [*IMAGES.names, *DETECTIONS.names, "run_date"]
    chosen = carried_names(dict.fromkeys(names))
    assert all(new == f"source_{old}" for old, new in chosen.items())


def test_names_stay_unique() -> None:
    chosen = carried_names(["label", "source_label", "source_source_label", "x"])
    assert chosen == {
        "label": "source_source_source_label", "source_label": "source_label",
        "source_source_label": "source_source_label", "x": "x",
    }  # fmt: skip
    assert len(set(chosen.values())) == 4


def test_columns_keep_the_order_of_the_source() -> None:
    types = {"c": pa.int8(), "image": pa.binary(), "a": pa.string(), "uri": pa.string()}
    fields = select_columns(types, ("uri", "c"), ("image",), "x.parquet")
    assert [(old, f.name, f.type) for old, f in fields.items()] == [
        ("c", "c", pa.int8()),
        ("uri", "source_uri", pa.string()),
    ]
    assert list(select_columns(types, None, ("image",), "x.parquet")) == ["c", "a", "uri"]
    assert all(f.nullable for f in fields.values())


def test_unknown_columns_get_a_hint_or_a_list() -> None:
    with pytest.raises(SourceError, match=r"source\.columns: f has no column 'lable'; did you mean 'label'\?"):
        require_column("lable", ["label", "x"], "source.columns", "f")
    with pytest.raises(SourceError, match="f has no column 'zzz'; it has label, x"):
        require_column("zzz", ["label", "x"], "source.columns", "f")


def test_types_that_travel() -> None:
    assert plain_type(pa.dictionary(pa.int8(), pa.large_string())) == pa.large_string()
    assert plain_type(pa.null()) == pa.string()
    assert plain_type(pa.uuid()) == pa.binary(16)
    assert plain_type(pa.list_(pa.int8())) == pa.list_(pa.int8())
