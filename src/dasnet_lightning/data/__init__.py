"""Data sets, splits and loaders of mixed box and mask supervision."""
