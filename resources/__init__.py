"""Files that ship with the package: models with cards, recipes, label tables, samples, icons."""
