"""LightningModules of detection, semantic segmentation and instance segmentation."""
