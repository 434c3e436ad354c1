"""Configuration: flags, environment and YAML become checked, frozen values; every mistake is told with its place."""
