"""Files that ship with the package: models and their cards, recipes, samples, icons."""
