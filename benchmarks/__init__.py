"""What the README's numbers come from; each prints a ratio of two things measured in one run."""
