"""Readers of data sets on disk, one per annotation format, which all produce the same records."""
