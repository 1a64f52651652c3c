"""Trials on processes, GPUs and nodes: the only package that imports ray."""
