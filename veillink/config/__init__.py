"""Text in, rules out: the rules' file and the command line."""
