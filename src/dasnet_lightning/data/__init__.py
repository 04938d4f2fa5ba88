"""Datasets, mask budgets, augmentation and the data module for mixed box and mask supervision."""
