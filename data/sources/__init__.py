"""Find the files of foregrounds, backgrounds and test sets."""
