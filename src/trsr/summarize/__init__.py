"""Turn histories into preference profiles: plan calls, make the missing ones, keep every result."""
