"""The Unix socket between a peer and its trainer."""
