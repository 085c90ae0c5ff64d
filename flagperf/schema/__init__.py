"""What is stored and exchanged: typed, frozen, versioned. Imports only errors of the harness, and never torch."""

SCHEMA_VERSION = 1
"""Raised when a stored file changes its meaning; readers accept the versions they know and say so otherwise."""
