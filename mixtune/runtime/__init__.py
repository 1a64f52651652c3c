"""Where a run computes: device, memory, process group, versions. No model, data or training here."""
