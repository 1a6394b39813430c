"""What trained models are asked: retrieval, sections, relations, and looks inside."""
