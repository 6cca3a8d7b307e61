"""Outer optimisers: how an aggregate moves the agreed parameters; pure."""
