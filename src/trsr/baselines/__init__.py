"""Rankers without a language model, and fusions of rankers."""
