"""Runs on this machine: their directories, invitations to them, and what their files say."""
