"""Frontends of infconv for JAX functions and scikit-learn estimators."""
