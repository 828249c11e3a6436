"""From a state to the files that ship: one file a runtime, and the bundle."""
