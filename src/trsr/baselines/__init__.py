"""Rankers: anything that gives each candidate of an example a margin."""
