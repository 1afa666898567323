"""Simulators that run the production policies in simulated time."""
