"""Tests of the engine through its Python module."""
