"""What the verbs of `python -m bench` do; one module each."""
