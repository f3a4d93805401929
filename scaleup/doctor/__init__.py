"""This package is `scaleup doctor`: what is wrong with a machine, or with several, before a run finds out."""
