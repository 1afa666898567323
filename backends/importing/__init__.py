"""Other people's weights, made into versions of our own: `python -m backends import`.

A source (Hugging Face folder, GGUF file, package) becomes a `Material`: config, tensors by their
Hugging Face names, tokenizer files. `deposit` writes that as one committed, published step.
"""
