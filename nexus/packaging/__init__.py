"""Writes and verifies packages: safetensors and JSON in one folder, never pickle."""
