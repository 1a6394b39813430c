"""ITR: aligning image-text relation semantics by clustering and contrast on unlabelled pairs."""
