"""Metrics, intervals, `metrics.json` and the report of a run."""
