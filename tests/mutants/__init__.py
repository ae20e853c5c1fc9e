"""Small wrong changes of the program, each of which a test has to notice."""
