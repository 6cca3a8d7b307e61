"""Rules that turn the members' updates into one; pure, on the grid."""
