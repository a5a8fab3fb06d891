"""Tests of ``supervisor.tube``: real sockets and real processes, each bounded by a deadline."""
