"""The passes: each makes one file of the file before, in a process of its own."""
