"""Answers, judgements, tables and pictures: what `eval.py` does beside training's measures (docs/evaluation.md)."""
