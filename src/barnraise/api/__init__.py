"""What a user's own program imports: the loop stays theirs, the swarm is an object beside it."""
