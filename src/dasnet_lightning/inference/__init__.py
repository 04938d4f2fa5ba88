"""Inference: a trained checkpoint segments images."""
