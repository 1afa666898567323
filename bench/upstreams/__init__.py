"""Servers that stand behind relays in measurements: they answer at once, by a script."""
