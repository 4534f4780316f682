"""What is done with committed tables: open, query, show, evaluate, verify."""
