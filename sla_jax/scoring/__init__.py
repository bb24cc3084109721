"""What an answer is worth: rules, reward channels, reward models, exact checks and anything that Python can call."""
