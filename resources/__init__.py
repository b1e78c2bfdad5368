"""Files that ship with the package: models and their cards, recipes, label tables, samples, icons."""
