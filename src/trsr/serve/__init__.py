"""Serves a model over HTTP: profiles that follow their users, and rankings in the time of a request."""
