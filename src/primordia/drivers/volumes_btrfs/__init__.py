"""The volumes port on a btrfs pool."""
