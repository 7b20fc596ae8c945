"""Files of sound."""
