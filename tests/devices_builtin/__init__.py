"""Tests of the devices that ship with the project."""
