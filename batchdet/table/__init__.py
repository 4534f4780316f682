"""Output tables: staging, commit, manifest and lineage."""
