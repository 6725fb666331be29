"""Calibration, schemes and the passes that change the precision of a graph."""
