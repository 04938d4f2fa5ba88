"""The parts of few_masks.py: data and kept features, our decoders, the rivals, the measures, the table."""
