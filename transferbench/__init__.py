"""Transfer evaluation of self-supervised image representations."""
