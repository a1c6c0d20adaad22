"""Contract test classes for new engines, scorers and rankers."""
