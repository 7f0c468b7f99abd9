"""What callers pass, checked and converted: arguments, points, times, rates. Reads no store and no clock."""
