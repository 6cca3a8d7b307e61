"""Text to train on: the bundled corpus or the user's own, cut into samples that every peer numbers alike."""
