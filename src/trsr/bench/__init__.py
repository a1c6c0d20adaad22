"""Measures `trsr` against the naive ways, in one process and on one machine."""
