"""Runs whole experiments, stage by stage, in a run folder that can be left and taken up at any point."""
