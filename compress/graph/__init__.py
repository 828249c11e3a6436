"""The traced network: its operators, what depends on what, and what each part costs."""
