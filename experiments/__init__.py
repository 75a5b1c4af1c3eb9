"""What is run, and what came out: configuration, command line, run folders, tables and reports. Nothing imports it."""
