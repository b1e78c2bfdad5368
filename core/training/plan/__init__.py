"""Self-configuration: the fingerprint of a data set, and the plan that follows from it."""
