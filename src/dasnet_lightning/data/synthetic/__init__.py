"""Synthetic data: drawn scenes of overlapping shapes with exact boxes and masks."""
