"""LightningModules: detection, semantic and instance segmentation."""
