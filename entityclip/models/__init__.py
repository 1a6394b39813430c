"""The method and its neighbours: tensors in, tensors out."""
