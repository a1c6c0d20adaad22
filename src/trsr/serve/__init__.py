"""Serves recommendations while it learns: events in, profiles that follow, candidates ranked."""
