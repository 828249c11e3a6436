"""From the code of a back end to a library that ships: memory plan, C driver, linking, loading, emulation."""
