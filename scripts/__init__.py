"""What makes the data and the pages of this project; no part of the library."""
