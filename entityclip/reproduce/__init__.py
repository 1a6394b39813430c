"""The notebooks in order, by papermill, and the figures without them."""
