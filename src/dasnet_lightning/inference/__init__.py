"""Inference on images with a trained checkpoint."""
