"""How members decide one log entry; pure, without I/O."""
