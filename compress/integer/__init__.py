"""Networks as integer arithmetic: the program, its fixed-point definitions, and the reference that runs it in numpy."""
