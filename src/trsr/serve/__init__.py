"""Serve a model over HTTP: profiles that are updated from events, and rankings on request."""
