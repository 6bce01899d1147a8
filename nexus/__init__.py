"""Nexus teaches a small open model new capabilities: train, measure, package, with one command."""

__version__ = "0.1.0"
