"""Restoring samples from measurements of them: draws of the posterior, what they are worth, and their picture."""
