"""Files of tensors: written atomically, sealed with a checksum, and read without executing code."""
