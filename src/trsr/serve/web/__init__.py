"""The page: what the service believes about a user, why, and the means to correct it."""
