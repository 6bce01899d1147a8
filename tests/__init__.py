"""Tests of Nexus; flags and fixtures stand in conftest.py."""
