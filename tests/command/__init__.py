"""The command on real processes."""
