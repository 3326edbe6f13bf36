"""Tests of the built-in networks."""
