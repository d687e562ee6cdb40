"""What is counted: the account of every connection."""
