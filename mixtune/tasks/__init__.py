"""What is learnt: the task contract, the registry, and one module per task."""
