"""Images from files or memory to the views of a step: sources, splits, decoding, augmentation, loading."""
