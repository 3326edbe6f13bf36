"""Comparing two models: how far their outputs are apart, and what is lost."""
