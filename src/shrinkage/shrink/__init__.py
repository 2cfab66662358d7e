"""Making models smaller: what stays of the class of a dense model, and how training goes on."""
