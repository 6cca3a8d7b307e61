"""Strategies: how long members train apart, and how an aggregate moves the agreed parameters; pure."""
