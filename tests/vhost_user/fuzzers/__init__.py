"""What is fuzzed (``targets``), and how it is run with coverage as the guide (``run``, for atheris)."""
