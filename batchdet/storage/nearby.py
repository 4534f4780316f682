"""What there is near a place that does not exist."""

import posixpath

from batchdet.storage.errors import StorageError
from batchdet.storage.failure import endpoint
from batchdet.storage.listing import list_names
from batchdet.storage.uri import normalize
from batchdet.text import did_you_mean


def what_exists(uri: str) -> str:
    """Say as half a sentence what there is beside an object or folder that does not exist, the nearest name first."""
    uri = normalize(uri)
    scheme, _, path = uri.partition("://") if "://" in uri else ("", "", uri)
    if scheme and "/" not in path.strip("/"):
        return f"there is no bucket of that name at {endpoint(uri) or f'{scheme}://'}"
    parent = posixpath.dirname(uri)
    try:
        names = list_names(parent)
    except StorageError:
        names = []
    if not names:
        return f"check the path ({parent} does not exist either, or is empty)"
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return did_you_mean(posixpath.basename(uri), names) or f"{parent} holds {shown}"
