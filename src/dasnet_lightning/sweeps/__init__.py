"""Sweeps over mask budgets: the learning curve, what the next masks are worth, and W&B's sweep files run locally."""
