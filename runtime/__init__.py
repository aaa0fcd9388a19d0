"""What touches the machine, once for all packages."""
