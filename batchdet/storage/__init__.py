"""Objects anywhere fsspec reaches: one face for local folders and object stores, with errors in plain words."""

from batchdet.storage.backoff import WEB, persist, retry
from batchdet.storage.client import filesystem
from batchdet.storage.errors import DiskFull, NotFound, SizeMismatch, StorageError, TransientError
from batchdet.storage.failure import endpoint, plain_errors
from batchdet.storage.listing import (
    StoredObject,
    exists,
    find_all,
    is_folder,
    list_names,
    list_objects,
    stat,
)
from batchdet.storage.local_file import LocalFile
from batchdet.storage.nearby import what_exists
from batchdet.storage.read import RangeFile, open_read, read_bytes, read_object, read_range
from batchdet.storage.temporary import temporary_errors, temporary_folder
from batchdet.storage.uri import basename, is_glob, join, normalize, scheme
from batchdet.storage.write import create, delete, delete_folder, move, write_bytes, write_file

__all__ = [
    "WEB",
    "DiskFull",
    "LocalFile",
    "NotFound",
    "RangeFile",
    "SizeMismatch",
    "StorageError",
    "StoredObject",
    "TransientError",
    "basename",
    "create",
    "delete",
    "delete_folder",
    "endpoint",
    "exists",
    "filesystem",
    "find_all",
    "is_folder",
    "is_glob",
    "join",
    "list_names",
    "list_objects",
    "move",
    "normalize",
    "open_read",
    "persist",
    "plain_errors",
    "read_bytes",
    "read_object",
    "read_range",
    "retry",
    "scheme",
    "stat",
    "temporary_errors",
    "temporary_folder",
    "what_exists",
    "write_bytes",
    "write_file",
]
