"""SSD: one detector class, its anchors and losses, and a builder for each backbone."""
