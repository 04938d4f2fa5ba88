"""DASNet and its inference."""
