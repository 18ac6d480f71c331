"""Studies: each a question that takes many runs, answered by one command with a table and a figure."""
