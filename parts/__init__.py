"""What the scripts share; the README has the map."""
