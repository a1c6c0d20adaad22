"""Contract test classes for every seam, shipped so that a new implementation tests itself in a few lines."""
