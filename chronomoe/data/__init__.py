"""Text to packed token blocks: corpora, tokenizer, packing, and the Lightning data module that serves them."""
