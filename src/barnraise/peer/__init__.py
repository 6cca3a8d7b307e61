"""A peer at work: performs on real sockets, disks and trainers what the pure core asks for."""
