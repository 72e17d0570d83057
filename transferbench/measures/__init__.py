"""Pure functions of arrays: metrics, uncertainty, neighbors, geometry."""
