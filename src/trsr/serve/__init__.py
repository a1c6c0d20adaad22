"""Serves recommendations over HTTP while profiles follow what users do."""
