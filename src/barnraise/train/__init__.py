"""The trainer: the process that holds torch, computes updates and knows nothing of the network."""
