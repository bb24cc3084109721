"""How uncertain a language model is, token by token, of texts that are given (`eval.py entropy`)."""
