"""Where a run computes: device, memory, process group, versions. Nothing of models, data or training."""
