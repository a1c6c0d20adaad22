"""Builds ranking prompts: one shared prefix a user, one short suffix a candidate, within a token budget."""
