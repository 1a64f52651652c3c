"""Images: from files or memory to the views of a step: reading, decoding, cropping, prefetching."""
