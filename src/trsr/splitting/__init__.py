"""From a dataset folder to ranking examples: protocols, negatives, leakage checks."""
