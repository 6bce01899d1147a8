"""LightningModules, one per algorithm, on one thin base."""
