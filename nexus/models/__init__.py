"""Loading models and adapters, and running them without wasted work."""
