"""Data for a model: what its inputs are, and where samples for them come from."""
