"""How updates become integers, and integers bytes; pure."""
