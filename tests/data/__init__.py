"""Tests of the data that models are fed."""
