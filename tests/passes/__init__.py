"""Tests of the passes, and the small networks that tests of rewriting share."""
