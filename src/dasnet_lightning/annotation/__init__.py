"""Annotation of data sets: masks for given boxes, with their quality."""
