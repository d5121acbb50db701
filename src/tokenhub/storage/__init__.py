"""Where things are kept: the Database port and its implementations, one file each."""
