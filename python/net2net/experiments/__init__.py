"""Runs that compare growth with its alternatives. Each returns its measurements; writing them is `artifacts`."""
