"""A study from start to end: open, run, prove, report."""
