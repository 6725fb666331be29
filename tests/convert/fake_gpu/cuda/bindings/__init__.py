"""A stand-in: memory of its own, and no driver."""
