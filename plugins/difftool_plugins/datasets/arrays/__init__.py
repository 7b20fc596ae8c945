"""The dataset `array`: read its files, and arrange their numbers as items."""
