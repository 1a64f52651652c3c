"""Running: trials on processes, GPUs and nodes. Ray is known here and nowhere else."""
