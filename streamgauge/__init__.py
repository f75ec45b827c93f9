"""The command line: parse, delegate, print, exit code."""
