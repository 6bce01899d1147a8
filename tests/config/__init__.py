"""The configuration: every file of `conf`, and every mistake that it alone can show."""
