"""Tests of how models are read, looked at and written."""
