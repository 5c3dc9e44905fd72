"""The command line: parsing and printing, one file a command."""
