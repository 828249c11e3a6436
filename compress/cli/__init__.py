"""The command line. Every module here starts light: torch, runtimes and rich are imported when they are used."""
