"""What a peer keeps on disk: the agreed log, the checkpoints, their tensors."""
