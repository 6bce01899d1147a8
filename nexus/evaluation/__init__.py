"""Metrics, their confidence intervals, and the suites that capabilities name."""
