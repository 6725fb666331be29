"""Shipped pipelines: one file for each target and precision, and the parts that they share."""
