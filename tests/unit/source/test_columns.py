import pyarrow as pa
import pytest

from batchdet.errors import SourceError
from batchdet.records.schema import IMAGES
from batchdet.source.columns import carried_names, carry, origin_of, require_column, select_columns


def test_names_of_our_own_tables_are_kept_free() -> None:
    names = [*IMAGES.names, "class_id", "run_date", "Label", "ETag"]
    assert carried_names(names) == [f"source_{name}" for name in names]


def test_names_stay_unique_in_any_case() -> None:
    assert carried_names(["label", "source_label", "source_source_label", "x"]) == [
        "source_source_source_label", "source_label", "source_source_label", "x",
    ]  # fmt: skip
    assert carried_names(["a", "A", "source_a"]) == ["a", "source_source_A", "source_a"]
    assert carried_names(["", "x", "column_1", "n\0"]) == ["source_column_1", "x", "column_1", "n"]


def test_columns_keep_the_order_of_the_source() -> None:
    types = {"c": pa.int8(), "image": pa.binary(), "a": pa.string(), "uri": pa.string()}
    fields, note = carry(select_columns(types, ("uri", "c"), ("image",), "x.parquet"))
    assert [(f.name, f.type, origin_of(f)) for f in fields] == [
        ("c", pa.int8(), ("column", "c")),
        ("source_uri", pa.string(), ("column", "uri")),
    ]
    assert note == "'uri' is carried as 'source_uri'"
    assert [c.name for c in select_columns(types, None, ("image",), "x.parquet")] == ["c", "a", "uri"]
    assert all(f.nullable for f in fields)


def test_unknown_columns_get_a_hint_or_a_list() -> None:
    with pytest.raises(SourceError, match=r"source\.columns: f has no column 'lable'; did you mean 'label'\?"):
        require_column("lable", ["label", "x"], "source.columns", "f")
    with pytest.raises(SourceError, match="f has no column 'zzz'; it has label, x"):
        require_column("zzz", ["label", "x"], "source.columns", "f")
