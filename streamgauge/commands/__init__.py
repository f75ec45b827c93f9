"""One module a command, each exposing a click command called ``command``; loaded when asked for."""
