"""The one command: knows every part, imports each on use."""
