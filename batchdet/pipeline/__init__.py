"""The way of the data on Ray Data. With cluster, the only package that knows ray."""
