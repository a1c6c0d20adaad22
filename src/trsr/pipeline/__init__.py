"""Runs whole experiments: every stage in order, in a run folder that can be left and taken up at any point."""
