"""A backbone and a data set in, a score with its uncertainty out."""
