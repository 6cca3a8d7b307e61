"""The agreed state and the round; pure, without I/O."""
