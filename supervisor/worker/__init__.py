"""What runs inside a worker: session, journal, runtime, entry point. Imported by the zygote, hence lean."""
