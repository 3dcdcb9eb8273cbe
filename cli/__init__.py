"""The command line: parses, calls the library, prints. It knows no algorithm."""
