"""What joins several runs into one answer; each run is a subprocess of its own."""
