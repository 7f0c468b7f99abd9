"""Files on a disk: written durably, given to the right owner, and only where there is room."""
