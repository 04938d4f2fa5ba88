"""Augmentation of training images with their boxes and masks, seeded by (seed, epoch, index)."""
