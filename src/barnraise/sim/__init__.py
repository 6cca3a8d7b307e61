"""A seeded world that runs the pure core against faults."""
