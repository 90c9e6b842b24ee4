"""The built-in tiny world: generated skills, a word-level tokenizer and a small Llama, all made on the spot."""
