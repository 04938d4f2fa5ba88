"""Data sets as they lie on disk: one reader for each format, all giving the same records."""
