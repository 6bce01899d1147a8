"""Lightning callbacks, one concern each; all act at optimizer-step boundaries."""
