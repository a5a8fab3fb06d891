"""Devices that only tests use."""
