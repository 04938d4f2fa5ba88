"""Pure tensor functions without state or parameters."""
