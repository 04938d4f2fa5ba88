"""The two-stage recipe: `train` runs both stages for every mask budget."""
