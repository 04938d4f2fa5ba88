"""Synthetic data set of textured shapes with boxes and masks, for the demo and the tests."""
