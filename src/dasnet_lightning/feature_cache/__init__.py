"""Cache on disk for the features of a frozen detector, addressed by content and bounded in size."""
