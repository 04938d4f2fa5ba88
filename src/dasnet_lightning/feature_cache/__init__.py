"""Features of a frozen detector, kept on disk, found by content and bounded in size."""
