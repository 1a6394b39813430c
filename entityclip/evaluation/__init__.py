"""What trained models are asked: retrieval, sections, relations, probes, and looks inside."""
