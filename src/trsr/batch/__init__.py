"""Runs the long stages on many machines; everything here is optional, the local way needs none of it."""
