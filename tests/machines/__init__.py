"""Tests of the machines that ship with the project."""
