"""Files of tensors: written whole or not at all, sealed with a checksum, and read as data that may not run code."""
