"""Build recipes, one YAML file a GPU; installed as the package `lhanet_export.recipes`."""
