"""What earlier versions left on the disk, written by their own daemons."""
