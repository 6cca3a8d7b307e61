"""How updates are encoded for the wire; pure."""
