"""What `eval.py report` does: from answers and judgements to tables, plots and pages."""
