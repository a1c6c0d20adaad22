"""Ranks candidates for a user: the prompt, the scorer, calibration, explanations, the model folder."""
