"""`scaleup verify`: the equalities that a config's runs are to have, on tiny twins of it, on the machine at hand."""
