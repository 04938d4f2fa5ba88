"""Semantic, instance and box metrics, gathered over ranks."""
