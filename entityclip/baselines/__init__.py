"""The methods EntityCLIP is read beside, on the same backbone, data and metrics."""
