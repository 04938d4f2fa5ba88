"""Semantic IoU and average precision of boxes and masks, computed over all ranks."""
