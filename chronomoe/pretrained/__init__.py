"""Exchange with Hugging Face transformers; the only place that knows its names."""
