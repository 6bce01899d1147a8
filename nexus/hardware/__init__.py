"""What the machine has, and whether a run fits it."""
