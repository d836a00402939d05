"""Plan of a recipe on a machine, by arithmetic, before anything is loaded: memory per device, seconds, hours."""
