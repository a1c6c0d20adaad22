"""From raw files to a dataset folder, and from a dataset folder to ranking examples."""
