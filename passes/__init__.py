"""Passes over the IR: lowering, analysis, validation and optimization, and the manager that runs them."""
