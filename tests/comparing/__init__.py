"""Tests of what compares models."""
