"""Measure `trsr` against naive implementations, in one process and on one machine."""
