"""Names that moved to `store`, `store_url` and `export`."""

from trsr.summarize.export import read_rows, write_rows
from trsr.summarize.store import open_store
from trsr.summarize.store_url import checked, is_database, redacted, resolved

__all__ = ["checked", "is_database", "open_store", "read_rows", "redacted", "resolved", "write_rows"]
