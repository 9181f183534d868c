"""Text files in, text files out, line by line, by one process or many; what is finished is never lost."""
