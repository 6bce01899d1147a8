"""Rewards as functions: text in, float out, no torch; several at once, each with a name and a weight."""
