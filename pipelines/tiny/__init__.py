"""The built-in tiny skills: generated items, a word-level tokenizer and a small Llama, all made on the spot."""
