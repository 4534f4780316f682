from pathlib import Path

import pyarrow as pa
import pytest

from batchdet.errors import OutputError
from batchdet.places import check_not_own_tables
from batchdet.source.inventory import Inventory


def _inventory(root: Path, uris: list[str | None]) -> Inventory:
    table = pa.table({"uri": pa.array(uris, pa.string()), "size_bytes": [1] * len(uris), "etag": [""] * len(uris)})
    return Inventory("uri_list", str(root / "l.csv"), table, pa.schema([]))


def test_tables_are_found_behind_links_and_entries_without_an_address_are_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (tmp_path / "link").symlink_to(out / "images")
    others = [None, "s3://b/out/x.jpg", f"{tmp_path}/outside/x.jpg", "x"]
    check_not_own_tables(_inventory(tmp_path, others), str(out))
    for inside in (f"{out}/images/x.jpg", f"{tmp_path}/link/x.jpg"):
        with pytest.raises(OutputError, match="lies in what source"):
            check_not_own_tables(_inventory(tmp_path, [*others, inside]), str(out))
