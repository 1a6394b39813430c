"""The accelerate loop, its batches, its run folder and its processes."""
