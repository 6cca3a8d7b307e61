"""Who sends which shard to whom; pure."""
