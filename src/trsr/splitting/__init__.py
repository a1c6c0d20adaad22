"""Examples: which past predicts which choice, and among which candidates."""
