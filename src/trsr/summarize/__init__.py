"""Turns histories into preference profiles: plans calls, makes the missing ones, keeps every result."""
