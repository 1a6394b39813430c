"""The paper's whole chain on drawn archives: `make rehearsal`, and a small form of it as a test."""
